"""What the scan's passes take as operators of torch's."""

# The fields of the native pass's Operands from kappa_b on, without the threshold.
NATIVE_TENSORS = (
    "Tensor? kappa_b, Tensor? frames, Tensor? table, Tensor? dense, Tensor? f_0, Tensor? bias, Tensor? m_0, "
    "Tensor kappa, Tensor gain, Tensor w_m, Tensor w_y, Tensor b_y, Tensor[] layers"
)
NATIVE_SCAN = f"({NATIVE_TENSORS}, bool silu, str sparse_input, bool save) -> (Tensor, Tensor, Tensor, Tensor)"
NATIVE_BACKWARD = (
    f"(Tensor? grad_y, Tensor? grad_m_last, Tensor saved, Tensor tile, {NATIVE_TENSORS}, bool silu, str sparse_input)"
    " -> Tensor[]"
)

# The fields of the CUDA pass's Operands from kappa_b on.
CUDA_TENSORS = (
    "Tensor kappa_b, Tensor? routing, Tensor? x, Tensor? v, Tensor? w_s, Tensor w1, Tensor? b1, Tensor kappa, "
    "Tensor gain, Tensor? w2, Tensor? b2, Tensor w_y, Tensor b_y, Tensor? b_0, Tensor? m_0"
)
CUDA_OPTIONS = "int num_steps, int num_input, bool silu, ScalarType? lowered"
NUM_SAVED = 2  # of the CUDA pass's Saved, without the arrangement of events
CUDA_SCAN = f"({CUDA_TENSORS}, {CUDA_OPTIONS}, bool save) -> ({', '.join(['Tensor'] * (3 + NUM_SAVED))})"
CUDA_BACKWARD = (
    f"(Tensor? grad_y, Tensor? grad_b, Tensor? grad_m, Tensor[] saved, {CUDA_TENSORS}, {CUDA_OPTIONS}, bool of_x)"
    " -> Tensor[]"
)

LEAKY_FILTER = "(Tensor dense, Tensor kappa, Tensor? initial) -> Tensor"

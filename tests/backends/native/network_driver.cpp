// Drives the kernels of layers of ELM neurons without Python, as alif_driver.cpp those of LIF layers: buffers of exactly the
// size that the interface promises, odd sizes, every option; outputs against a plain loop in double, gradients against
// central differences of that loop.
//
//     network_driver     prints "clean" and returns 0, or says what differs
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "api.h"

extern "C" {
int64_t elm_network_lanes(int64_t, int64_t, int64_t, int64_t, int64_t);
int64_t elm_network_saved(int64_t, const ElmNetwork *);
int64_t elm_network_forward(int64_t, int64_t, const ElmNetwork *);
int64_t elm_network_backward(int64_t, int64_t, const ElmNetwork *);
}

typedef std::vector<double> Array;
static uint64_t seed = 1;
static double uniform(double low, double high) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return low + (high - low) * (double)(seed >> 33) / (double)(1u << 31);
}
static Array drawn(int64_t size, double low, double high) {
    Array x(size);
    for (double &entry : x) entry = uniform(low, high);
    return x;
}

static int failures = 0;
static void compare(const char *what, double got, double wanted, double tolerance) {
    if (std::fabs(got - wanted) <= tolerance * std::max(1.0, std::fabs(wanted))) return;
    std::printf("%s: got %.12g, wanted %.12g\n", what, got, wanted);
    failures++;
}

struct Config {
    int64_t batch, steps, inputs, n, branches, of_branch, d, hidden;  // hidden 0: no hidden layer
    bool events, values, trace, high_pass, masks, lengths, identity;
};

// The operands that are differentiated, in the order of `fields`.
enum { W_S, W_Y, BIAS, KAPPA_M, GAIN, KAPPA_B, KAPPA_R, WEIGHT_0, BIAS_0, WEIGHT_1, BIAS_1, A_0, B_0, M_0, R_0, X, COUNT };
static const char *const fields[] = {"w_s",    "w_y",      "bias",   "kappa_m", "gain", "kappa_b", "kappa_r", "weight 0",
                                     "bias 0", "weight 1", "bias 1", "a_0",     "b_0",  "m_0",     "r_0",     "x"};

struct Problem {
    Config c;
    std::vector<int64_t> index, lengths;
    Array in_mask, rec_mask, part[COUNT];

    // A weighted sum of everything that the layer gives; `a`: its output, if wanted. The nonlinearity is silu.
    double run(const Array &weigh_a, const Array &weigh_change, const Array &weigh_m, Array *a_out) const {
        const int64_t d = c.d, S = c.branches * c.of_branch, I = c.branches + d;
        double total = 0.0;
        for (int64_t b = 0; b < c.batch; b++) {
            Array a(part[A_0].begin() + b * c.n, part[A_0].begin() + (b + 1) * c.n), next(c.n), u(c.inputs + c.n);
            Array m(part[M_0].begin() + b * c.n * d, part[M_0].begin() + (b + 1) * c.n * d);
            Array trace(part[B_0].begin() + b * c.n * c.branches, part[B_0].begin() + (b + 1) * c.n * c.branches);
            Array r(part[R_0].begin() + b * c.n, part[R_0].begin() + (b + 1) * c.n);
            for (int64_t t = 0; t < lengths[b]; t++) {
                for (int64_t k = 0; k < c.inputs; k++)
                    u[k] = part[X][(b * c.steps + t) * c.inputs + k] * (c.masks ? in_mask[b * c.inputs + k] : 1.0);
                for (int64_t k = 0; k < c.n; k++) u[c.inputs + k] = a[k] * (c.masks ? rec_mask[b * c.n + k] : 1.0);
                for (int64_t n = 0; n < c.n; n++) {
                    Array x(I), h, o(d);
                    for (int64_t j = 0; j < c.branches; j++) {
                        double sum = 0.0;
                        for (int64_t k = 0; k < c.of_branch; k++) {
                            const int64_t slot = n * S + j * c.of_branch + k;
                            sum += part[W_S][slot] * u[index[slot]];
                        }
                        double &held = trace[n * c.branches + j];
                        x[j] = 1.5 * sum + (c.trace ? part[KAPPA_B][n * c.branches + j] * held : 0.0);
                        if (c.trace) held = x[j];
                    }
                    for (int64_t i = 0; i < d; i++) x[c.branches + i] = part[KAPPA_M][n * d + i] * m[n * d + i];
                    const int64_t first = c.hidden ? c.hidden : d;
                    for (int64_t k = 0; k < first; k++) {
                        double z = part[BIAS_0][n * first + k];
                        for (int64_t i = 0; i < I; i++) z += part[WEIGHT_0][(n * first + k) * I + i] * x[i];
                        h.push_back(c.hidden ? z / (1.0 + std::exp(-z)) : z);
                    }
                    for (int64_t i = 0; i < d && c.hidden; i++) {
                        o[i] = part[BIAS_1][n * d + i];
                        for (int64_t k = 0; k < first; k++) o[i] += part[WEIGHT_1][(n * d + i) * first + k] * h[k];
                    }
                    if (!c.hidden) o = h;
                    double y = 0.0, size = 0.0;
                    for (int64_t i = 0; i < d; i++) {
                        m[n * d + i] = x[c.branches + i] + part[GAIN][n * d + i] * 1.7159 * std::tanh(2.0 / 3.0 * o[i]);
                        y += part[W_Y][n * d + i] * m[n * d + i];
                        size += std::fabs(o[i]) / (double)d;
                    }
                    if (c.high_pass) {
                        r[n] = part[KAPPA_R][n] * r[n] + (1.0 - part[KAPPA_R][n]) * y;
                        y -= r[n];
                    }
                    y += part[BIAS][n];
                    next[n] = c.identity ? y : std::max(y, 0.0);
                    total += weigh_a[(b * c.steps + t) * c.n + n] * next[n] + weigh_change[b * c.n + n] * size;
                    if (a_out) (*a_out)[(b * c.steps + t) * c.n + n] = next[n];
                }
                a = next;
            }
            for (int64_t k = 0; k < c.n * d; k++) total += weigh_m[b * c.n * d + k] * m[k];
        }
        return total;
    }
};

// `lanes`: 1 for lanes of neurons, 0 for those that the library takes for many samples.
template <class R> static void drive(const Config &c, int64_t lanes) {
    const int64_t is_double = sizeof(R) == 8, S = c.branches * c.of_branch, I = c.branches + c.d, B = c.batch;
    const int64_t first = c.hidden ? c.hidden : c.d, rows = B * c.steps;
    Problem p = {c, {}, {}, {}, {}, {}};
    for (int64_t k = 0; k < c.n * S; k++) p.index.push_back((int64_t)uniform(0, (double)(c.inputs + c.n) - 1e-9));
    for (int64_t b = 0; b < B; b++) p.lengths.push_back(c.lengths ? (b * 7 + 3) % (c.steps + 1) : c.steps);
    p.in_mask = drawn(B * c.inputs, 0.5, 1.5), p.rec_mask = drawn(B * c.n, 0.5, 1.5);
    const int64_t sizes[COUNT] = {c.n * S,       c.n * c.d,           c.n,
                                  c.n * c.d,     c.n * c.d,           c.trace ? c.n * c.branches : 0,
                                  c.high_pass ? c.n : 0, c.n * first * I, c.n * first,
                                  c.hidden ? c.n * c.d * first : 0, c.hidden ? c.n * c.d : 0, B * c.n,
                                  B * c.n * c.branches, B * c.n * c.d, B * c.n, rows * c.inputs};
    for (int k = 0; k < COUNT; k++) p.part[k] = drawn(sizes[k], k == KAPPA_M || k >= KAPPA_B && k <= KAPPA_R ? 0.3 : -0.5, 0.6);
    std::vector<int64_t> begin, end, channel;
    std::vector<R> value;
    for (int64_t row = 0; row < rows; row++) {
        begin.push_back((int64_t)channel.size());
        for (int64_t k = 0; k < c.inputs; k++) {
            double &entry = p.part[X][row * c.inputs + k];
            if (uniform(0, 1) < 0.5) entry = 0.0;
            if (entry != 0.0 && c.events && !c.values) entry = 1.0;
            if (entry != 0.0) channel.push_back(k), value.push_back(R(entry));
        }
        end.push_back((int64_t)channel.size());
    }
    std::vector<R> operand[COUNT], grad[COUNT];
    for (int k = 0; k < COUNT; k++) {
        operand[k].assign(p.part[k].begin(), p.part[k].end());
        grad[k].resize(sizes[k]);
    }
    const Array wa = drawn(rows * c.n, -1, 1), wc = drawn(B * c.n, -1, 1), wm = drawn(B * c.n * c.d, -1, 1);
    const std::vector<R> in_mask(p.in_mask.begin(), p.in_mask.end()), rec_mask(p.rec_mask.begin(), p.rec_mask.end());
    const std::vector<R> ga(wa.begin(), wa.end()), gc(wc.begin(), wc.end()), gm(wm.begin(), wm.end());
    std::vector<R> a(rows * c.n), change(B * c.n), a_last(B * c.n), b_last(B * c.n * c.branches), m_last(B * c.n * c.d);
    std::vector<R> r_last(B * c.n);
    ElmNetwork x = {};
    x.batch = B, x.num_steps = c.steps, x.num_neuron = c.n, x.num_input = c.inputs, x.num_branch = c.branches;
    x.num_synapse = c.of_branch, x.num_memory = c.d, x.num_layers = c.hidden ? 2 : 1, x.activation = ELM_SILU;
    x.output = c.identity ? ELM_OUTPUT_IDENTITY : ELM_OUTPUT_RELU, x.lanes = lanes ? lanes : elm_network_lanes(is_double, 64, c.n, c.steps, 2);
    x.wide = 1, x.x_batch = c.steps * c.inputs, x.x_time = c.inputs, x.a_batch = c.steps * c.n, x.a_time = c.n;
    x.grad_batch = c.steps * c.n, x.grad_time = c.n, x.input_scale = 1.5, x.width[0] = first, x.width[1] = c.d;
    x.index = p.index.data(), x.lengths = c.lengths ? p.lengths.data() : nullptr;
    if (c.events) {
        x.begin = begin.data(), x.end = end.data(), x.channel = channel.data(), x.value = c.values ? value.data() : nullptr;
    } else
        x.x = operand[X].data(), x.grad_x = grad[X].data();
    if (c.masks) x.input_mask = in_mask.data(), x.recurrent_mask = rec_mask.data();
    x.w_s = operand[W_S].data(), x.w_y = operand[W_Y].data(), x.bias = operand[BIAS].data();
    x.kappa_m = operand[KAPPA_M].data(), x.gain = operand[GAIN].data();
    x.weight[0] = operand[WEIGHT_0].data(), x.layer_bias[0] = operand[BIAS_0].data();
    x.weight[1] = operand[WEIGHT_1].data(), x.layer_bias[1] = operand[BIAS_1].data();
    x.a_0 = operand[A_0].data(), x.m_0 = operand[M_0].data(), x.a = a.data(), x.change = change.data();
    x.a_last = a_last.data(), x.m_last = m_last.data();
    x.grad_a = ga.data(), x.grad_change = gc.data(), x.grad_m_last = gm.data();
    x.grad_w_s = grad[W_S].data(), x.grad_w_y = grad[W_Y].data(), x.grad_bias = grad[BIAS].data();
    x.grad_kappa_m = grad[KAPPA_M].data(), x.grad_gain = grad[GAIN].data(), x.grad_a_0 = grad[A_0].data();
    x.grad_m_0 = grad[M_0].data(), x.grad_weight[0] = grad[WEIGHT_0].data(), x.grad_layer_bias[0] = grad[BIAS_0].data();
    x.grad_weight[1] = grad[WEIGHT_1].data(), x.grad_layer_bias[1] = grad[BIAS_1].data();
    if (c.trace) {
        x.kappa_b = operand[KAPPA_B].data(), x.b_0 = operand[B_0].data(), x.b_last = b_last.data();
        x.grad_kappa_b = grad[KAPPA_B].data(), x.grad_b_0 = grad[B_0].data();
    }
    if (c.high_pass) {
        x.kappa_r = operand[KAPPA_R].data(), x.r_0 = operand[R_0].data(), x.r_last = r_last.data();
        x.grad_kappa_r = grad[KAPPA_R].data(), x.grad_r_0 = grad[R_0].data();
    }
    std::vector<R> saved(elm_network_saved(is_double, &x));
    x.saved = saved.data();
    compare("status", (double)(elm_network_forward(is_double, 2, &x) | elm_network_backward(is_double, 2, &x)), 0.0, 0.0);
    Array wanted(rows * c.n);
    p.run(wa, wc, wm, &wanted);
    for (int64_t k = 0; k < rows * c.n; k++) compare("a", a[k], wanted[k], is_double ? 1e-10 : 2e-5);
    for (int k = 0; k < COUNT && is_double; k++) {
        if ((k == X && c.events) || (k == B_0 && !c.trace) || (k == R_0 && !c.high_pass)) continue;
        for (int64_t i = 0; i < sizes[k]; i += 1 + sizes[k] / 7) {
            const double before = p.part[k][i], step = 1e-5;
            p.part[k][i] = before + step;
            const double more = p.run(wa, wc, wm, nullptr);
            p.part[k][i] = before - step;
            const double less = p.run(wa, wc, wm, nullptr);
            p.part[k][i] = before;
            compare(fields[k], grad[k][i], (more - less) / (2.0 * step), 1e-6);
        }
    }
    x.index = (p.index[0] = c.inputs + c.n, p.index.data());
    compare("refusal", (double)(elm_network_forward(is_double, 1, &x) & elm_network_backward(is_double, 1, &x)), 2.0, 0.0);
}

int main() {
    const Config configs[] = {
        {1, 1, 3, 1, 1, 1, 1, 0, false, false, false, false, false, false, true},
        {3, 17, 5, 4, 3, 2, 3, 5, false, false, true, true, true, true, true},
        {9, 19, 4, 3, 2, 3, 2, 13, true, true, false, true, true, true, true},
        {5, 33, 7, 2, 4, 1, 5, 0, true, false, true, false, false, true, true},
        {2, 70, 3, 17, 2, 3, 2, 3, false, false, true, true, true, true, true},
        {17, 9, 2, 5, 1, 2, 1, 3, false, false, false, false, false, false, false},
    };
    for (const Config &c : configs) {
        for (int64_t lanes : {0, 1}) {
            drive<double>(c, lanes);
            drive<float>(c, lanes);
        }
    }
    if (!failures) std::printf("clean\n");
    return failures != 0;
}

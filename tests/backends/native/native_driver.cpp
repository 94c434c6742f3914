// Drives the kernels without Python: buffers of exactly the size that the interface promises, odd sizes, every option;
// for memory checkers, other compilers and other processors. Forward passes are compared with a plain loop over the
// equations in double, gradients with central differences of that loop along a random direction (double) and with the
// double gradients (float).
//
//     native_driver [sizes]     prints "clean" and returns 0, or says what differs
//
// One long file, so that one compiler call on a bare machine builds it.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "api.h"

extern "C" {
const char *elm_isa();
int64_t elm_padded(int64_t, int64_t);
int64_t elm_tile(int64_t);
int64_t elm_chunk(int64_t);
int64_t elm_scan_forward(int64_t, int64_t, const ElmScan *);
int64_t elm_scan_backward(int64_t, int64_t, const ElmScan *);
int64_t elm_filter_forward(int64_t, int64_t, const ElmFilter *);
int64_t elm_filter_backward(int64_t, int64_t, const ElmFilter *);
int64_t elm_table_forward(int64_t, int64_t, const ElmTable *);
int64_t elm_table_backward(int64_t, int64_t, const ElmTable *);
int64_t elm_compact(int64_t, int64_t, const ElmFrames *);
void elm_discount(int64_t, int64_t, int64_t, int64_t, int64_t, double, int64_t, const int64_t *, const int64_t *,
                  const int64_t *, const void *, const void *, void *);
int64_t elm_pass_forward(int64_t, int64_t, const ElmPass *);
int64_t elm_pass_backward(int64_t, int64_t, const ElmPass *);
double elm_sum(int64_t, int64_t, int64_t, int64_t, const void *);
}

typedef std::vector<double> Array;
static uint64_t state = 1;
static double uniform() {  // in [-1, 1)
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 33) / (double)(1u << 30) - 1.0;
}
static Array drawn(int64_t size, double scale = 1.0, double shift = 0.0) {
    Array x(size);
    for (double &entry : x) entry = shift + scale * uniform();
    return x;
}

struct Config {
    int64_t batch, steps, neurons, d, layers, h, silu, outputs, inputs;
    bool events, wide, values, lengths, initial, filtered;
    int64_t first() const { return layers ? h : d; }
};

static int failures = 0;
static void compare(const char *what, const Config &c, double got, double wanted, double scale, double tolerance) {
    if (std::fabs(got - wanted) <= tolerance * (scale > 1.0 ? scale : 1.0)) return;
    std::printf(
        "%s: got %.9g, wanted %.9g (batch %d, steps %d, neurons %d, memory %d, layers %d, hidden %d, silu %d, events "
        "%d)\n",
        what, got, wanted, (int)c.batch, (int)c.steps, (int)c.neurons, (int)c.d, (int)c.layers, (int)c.h, (int)c.silu,
        (int)c.events);
    failures++;
}

// Everything a pass reads, in double and without padding, in the order in which gradients are asked for.
struct Inputs {
    enum { TABLE, DENSE, INITIAL, BIAS, M_0, KAPPA, GAIN, W_M, W_Y, B_Y, LAYERS };
    std::vector<Array> part;
    std::vector<int64_t> begin, end, channel, lengths;
    Array value;
    double kappa_b;
};

static Inputs inputs(const Config &c) {
    const int64_t rows = c.batch * c.steps, first = c.first();
    Inputs in;
    in.kappa_b = 0.7;
    in.part = {drawn(c.events ? c.neurons * c.inputs * first : 0, 0.5),
               drawn(c.events ? 0 : rows * c.neurons * first, 0.5),
               drawn(c.initial ? c.batch * c.neurons * first : 0),
               drawn(c.neurons * first, 0.3),
               drawn(c.initial ? c.batch * c.neurons * c.d : 0),
               drawn(c.neurons * c.d, 0.45, 0.5),
               drawn(c.neurons * c.d, 0.3, 0.5),
               drawn(c.neurons * first * c.d, 0.4),
               drawn(c.neurons * c.outputs * c.d),
               drawn(c.neurons * c.outputs)};
    for (int64_t l = 0; l < c.layers; l++) {
        const int64_t out = l + 1 == c.layers ? c.d : c.h;
        in.part.push_back(drawn(c.neurons * out * c.h, 0.4));
        in.part.push_back(drawn(c.neurons * out, 0.3));
    }
    for (int64_t row = 0; row < rows; row++) {
        in.begin.push_back((int64_t)in.channel.size());
        for (int64_t k = (int64_t)(2.5 * (1.0 + uniform())); k > 0; k--)
            in.channel.push_back((int64_t)(0.5 * (1.0 + uniform()) * (double)c.inputs));
        in.end.push_back((int64_t)in.channel.size());
    }
    in.value = c.values ? drawn((int64_t)in.channel.size()) : Array(in.channel.size(), 1.0);
    for (int64_t b = 0; b < c.batch; b++) in.lengths.push_back(c.lengths ? (b * 7 + 3) % (c.steps + 1) : c.steps);
    return in;
}

// Output and last memory of the plain loop.
static void loop(const Config &c, const Inputs &in, Array &y, Array &m_last) {
    const int64_t first = c.first(), d = c.d;
    y.assign(c.batch * c.steps * c.neurons * c.outputs, 0.0);
    m_last.assign(c.batch * c.neurons * d, 0.0);
    for (int64_t b = 0; b < c.batch; b++)
        for (int64_t n = 0; n < c.neurons; n++) {
            const int64_t row = b * c.neurons + n;
            Array m(d), f(first), z(first), next;
            for (int64_t j = 0; j < d && c.initial; j++) m[j] = in.part[Inputs::M_0][row * d + j];
            for (int64_t j = 0; j < first && c.initial; j++) f[j] = in.part[Inputs::INITIAL][row * first + j];
            for (int64_t t = 0; t < in.lengths[b]; t++) {
                const int64_t at = b * c.steps + t;
                for (int64_t j = 0; j < first; j++) {
                    f[j] *= c.filtered ? in.kappa_b : 0.0;
                    if (!c.events) f[j] += in.part[Inputs::DENSE][(at * c.neurons + n) * first + j];
                    for (int64_t e = in.begin[at]; c.events && e < in.end[at]; e++)
                        f[j] += in.value[e] * in.part[Inputs::TABLE][(n * c.inputs + in.channel[e]) * first + j];
                    z[j] = f[j] + in.part[Inputs::BIAS][n * first + j];
                    for (int64_t k = 0; k < d; k++)
                        z[j] +=
                            in.part[Inputs::W_M][(n * first + j) * d + k] * in.part[Inputs::KAPPA][n * d + k] * m[k];
                }
                Array h = z;
                for (int64_t l = 0; l < c.layers; l++) {
                    const int64_t out = l + 1 == c.layers ? d : c.h;
                    const Array &weight = in.part[Inputs::LAYERS + 2 * l], &bias = in.part[Inputs::LAYERS + 2 * l + 1];
                    for (double &entry : h)
                        entry = c.silu ? entry / (1.0 + std::exp(-entry)) : entry > 0.0 ? entry : 0.0;
                    next.assign(out, 0.0);
                    for (int64_t i = 0; i < out; i++) {
                        next[i] = bias[n * out + i];
                        for (int64_t j = 0; j < c.h; j++) next[i] += weight[(n * out + i) * c.h + j] * h[j];
                    }
                    h = next;
                }
                for (int64_t j = 0; j < d; j++)
                    m[j] = in.part[Inputs::KAPPA][n * d + j] * m[j] +
                           in.part[Inputs::GAIN][n * d + j] * 1.7159 * std::tanh(2.0 / 3.0 * h[j]);
                for (int64_t o = 0; o < c.outputs; o++) {
                    double &entry = y[(at * c.neurons + n) * c.outputs + o];
                    entry = in.part[Inputs::B_Y][n * c.outputs + o];
                    for (int64_t j = 0; j < d; j++) entry += in.part[Inputs::W_Y][(n * c.outputs + o) * d + j] * m[j];
                }
            }
            for (int64_t j = 0; j < d; j++) m_last[row * d + j] = m[j];
        }
}

// The kernels in R: outputs, and gradients of sum(grad_y y) + sum(grad_m m_last) in the order of Inputs::part.
template <class R> struct Kernels {
    std::vector<std::vector<R>> given, grads;
    std::vector<R> y, m_last, value, kappa_b, grad_y, grad_m, saved, f_last;
    std::vector<int32_t> narrow;

    void fire(const Config &c, const Inputs &in, ElmScan a, int64_t threads);

    Kernels(const Config &c, const Inputs &in, const Array &of_y, const Array &of_m, int64_t threads) {
        const int64_t is_double = sizeof(R) == 8, first = c.first(), rows = c.batch * c.neurons,
                      pad = elm_padded(is_double, first);
        for (const Array &part : in.part) given.emplace_back(part.begin(), part.end());
        std::vector<R> table(c.events ? c.neurons * c.inputs * pad : 0, R(0));
        for (int64_t r = 0; c.events && r < c.neurons * c.inputs; r++)
            for (int64_t j = 0; j < first; j++) table[r * pad + j] = given[Inputs::TABLE][r * first + j];
        given[Inputs::TABLE] = table;
        value.assign(in.value.begin(), in.value.end());
        narrow.assign(in.channel.begin(), in.channel.end());
        kappa_b = {R(in.kappa_b)};
        grad_y.assign(of_y.begin(), of_y.end());
        grad_m.assign(of_m.begin(), of_m.end());
        for (const std::vector<R> &part : given) grads.emplace_back(part.size(), R(0));
        y.resize(of_y.size());
        m_last.resize(of_m.size());
        f_last.resize(rows * first);
        const int64_t hp = c.layers * elm_padded(is_double, c.h), dp = elm_padded(is_double, c.d),
                      chunk = elm_chunk(is_double);
        saved.resize(rows * (c.steps * (hp + dp) + (c.steps + chunk - 1) / chunk * dp));

        ElmScan a;
        std::memset(&a, 0, sizeof a);
        a.batch = c.batch, a.num_steps = a.all_steps = c.steps, a.num_neuron = c.neurons, a.num_memory = c.d,
        a.num_layers = c.layers;
        a.hidden = c.layers ? c.h : 0, a.silu = c.silu, a.num_output = c.outputs, a.num_input = c.inputs,
        a.wide = c.wide;
        a.tile = elm_tile(is_double);
        while (threads > 1 && a.tile > 1 && c.neurons * ((c.batch + a.tile - 1) / a.tile) < threads) a.tile /= 2;
        int64_t rest = c.batch % a.tile;
        for (a.num_task = c.batch / a.tile; rest; rest &= rest - 1) a.num_task++;
        a.num_task *= c.neurons;
        a.dense_neuron = first, a.dense_time = c.neurons * first, a.dense_batch = c.steps * a.dense_time;
        a.y_neuron = a.grad_y_neuron = c.outputs, a.y_time = a.grad_y_time = c.neurons * c.outputs,
        a.y_batch = a.grad_y_batch = c.steps * a.y_time;
        a.w_m_row = c.d, a.w_m_neuron = first * c.d;
        a.lengths = c.lengths ? in.lengths.data() : nullptr;
        if (c.events) {
            a.begin = in.begin.data(), a.end = in.end.data();
            a.channel = c.wide ? (const void *)in.channel.data() : narrow.data();
            a.value = c.values ? value.data() : nullptr;
            a.table = given[Inputs::TABLE].data(), a.grad_table = grads[Inputs::TABLE].data();
        } else {
            a.dense = given[Inputs::DENSE].data(), a.grad_dense = grads[Inputs::DENSE].data();
        }
        a.kappa_b = c.filtered ? kappa_b.data() : nullptr;
        if (c.initial) a.f_0 = given[Inputs::INITIAL].data(), a.m_0 = given[Inputs::M_0].data();
        if (c.initial) a.grad_f_0 = grads[Inputs::INITIAL].data(), a.grad_m_0 = grads[Inputs::M_0].data();
        a.bias = given[Inputs::BIAS].data(), a.kappa = given[Inputs::KAPPA].data(), a.gain = given[Inputs::GAIN].data();
        a.w_m = given[Inputs::W_M].data(), a.w_y = given[Inputs::W_Y].data(), a.b_y = given[Inputs::B_Y].data();
        a.grad_bias = grads[Inputs::BIAS].data(), a.grad_kappa = grads[Inputs::KAPPA].data(),
        a.grad_gain = grads[Inputs::GAIN].data();
        a.grad_w_m = grads[Inputs::W_M].data(), a.grad_w_y = grads[Inputs::W_Y].data(),
        a.grad_b_y = grads[Inputs::B_Y].data();
        for (int64_t l = 0; l < c.layers; l++) {
            a.weight[l] = given[Inputs::LAYERS + 2 * l].data(),
            a.layer_bias[l] = given[Inputs::LAYERS + 2 * l + 1].data();
            a.grad_weight[l] = grads[Inputs::LAYERS + 2 * l].data(),
            a.grad_layer_bias[l] = grads[Inputs::LAYERS + 2 * l + 1].data();
        }
        a.y = y.data(), a.m_last = m_last.data();
        std::vector<R> without(y.size()), last(c.batch * c.neurons * c.outputs, R(7));
        a.y = without.data();
        failures += elm_scan_forward(is_double, threads, &a) != 0;  // with nothing kept
        a.y = nullptr, a.y_last = last.data();
        failures += elm_scan_forward(is_double, threads, &a) != 0;  // not even the readout, but for the last one
        a.y_last = nullptr;
        a.y = y.data(), a.saved = saved.data(), a.f_last = f_last.data();
        failures += elm_scan_forward(is_double, threads, &a) != 0;
        for (size_t i = 0; i < y.size(); i++) compare("output without a backward pass", c, without[i], y[i], 1.0, 0.0);
        for (int64_t b = 0, size = c.neurons * c.outputs; b < c.batch; b++)
            for (int64_t j = 0, end = in.lengths[b]; j < size; j++)
                compare("last output", c, last[b * size + j], end ? y[(b * c.steps + end - 1) * size + j] : R(7), 1.0, 0.0);
        a.grad_y = grad_y.data(), a.grad_m_last = grad_m.data();
        failures += elm_scan_backward(is_double, threads, &a) != 0;
        fire(c, in, a, threads);
        std::vector<R> &padded = grads[Inputs::TABLE], bare(in.part[Inputs::TABLE].size());
        for (int64_t r = 0; c.events && r < c.neurons * c.inputs; r++)
            for (int64_t j = 0; j < first; j++) bare[r * first + j] = padded[r * pad + j];
        padded = bare;
    }
};

// The spikes of a pass, and its gradients for spikes: those of a pass whose readout's gradient holds the surrogate's
// slope. Leaves the gradients that were there.
template <class R> void Kernels<R>::fire(const Config &c, const Inputs &in, ElmScan a, int64_t threads) {
    const int64_t is_double = sizeof(R) == 8, size = c.neurons * c.outputs;
    const double tolerance = is_double ? 1e-10 : 1e-4;
    const std::vector<std::vector<R>> before = grads;
    std::vector<R> threshold(size), spikes(y.size(), R(7)), of_spikes(y.size()), both(y.size()), grad_threshold(size);
    for (R &entry : threshold) entry = R(0.2 * uniform());
    for (R &entry : of_spikes) entry = R(uniform());
    for (int64_t surrogate = ELM_ATAN; surrogate <= ELM_FAST_SIGMOID; surrogate++) {
        a.one_threshold = surrogate != ELM_ATAN;
        if (a.one_threshold) threshold.assign(size, threshold[0]);
        a.threshold = threshold.data(), a.spikes = spikes.data(), a.surrogate = surrogate, a.slope = 2.5;
        a.grad_spikes = nullptr, a.grad_threshold = nullptr;
        failures += elm_scan_forward(is_double, threads, &a) != 0;
        Array wanted(size, 0.0);
        both = grad_y;
        for (int64_t i = 0; i < (int64_t)y.size(); i++) {
            const int64_t n = i % size, t = i / size % c.steps, b = i / size / c.steps;
            const bool inside = t < in.lengths[b];
            compare("spike", c, spikes[i], inside && y[i] > threshold[n], 1.0, 0.0);
            if (!inside) continue;
            const double x = (double)y[i] - (double)threshold[n], wide = 1.5707963267948966 * 2.5 * x;
            const double slope = surrogate == ELM_ATAN
                                     ? 1.25 / (1.0 + wide * wide)
                                     : 1.0 / ((1.0 + 2.5 * std::fabs(x)) * (1.0 + 2.5 * std::fabs(x)));
            both[i] = R((double)grad_y[i] + slope * of_spikes[i]);
            wanted[n] -= slope * of_spikes[i];
        }
        const auto backward = [&](const R *grad, const R *grad_of_spikes) {
            for (std::vector<R> &part : grads) part.assign(part.size(), R(0));
            a.grad_y = grad, a.grad_spikes = grad_of_spikes;
            a.grad_threshold = grad_of_spikes ? grad_threshold.data() : nullptr;
            a.grad_spikes_batch = a.grad_y_batch, a.grad_spikes_time = a.grad_y_time;
            a.grad_spikes_neuron = a.grad_y_neuron;
            failures += elm_scan_backward(is_double, threads, &a) != 0;
            return grads;
        };
        const std::vector<std::vector<R>> fired = backward(grad_y.data(), of_spikes.data());
        const std::vector<std::vector<R>> expected = backward(both.data(), nullptr);
        for (size_t p = 0; p < fired.size(); p++)
            for (size_t i = 0; i < fired[p].size(); i++)
                compare("gradient through the spikes", c, fired[p][i], expected[p][i],
                        std::fabs((double)expected[p][i]) + (double)(c.batch * c.steps), tolerance);
        for (int64_t n = 0; n < size; n++)
            compare("gradient of the threshold", c, grad_threshold[n], wanted[n], (double)(c.batch * c.steps),
                    tolerance);
    }
    grads = before;
}

static double loss(const Config &c, const Inputs &in, const Array &of_y, const Array &of_m) {
    Array y, m;
    loop(c, in, y, m);
    double sum = 0.0;
    for (size_t i = 0; i < y.size(); i++) sum += of_y[i] * y[i];
    for (size_t i = 0; i < m.size(); i++) sum += of_m[i] * m[i];
    return sum;
}

static void scan(const Config &c) {
    const Inputs in = inputs(c);
    Array y, m;
    loop(c, in, y, m);
    const Array of_y = drawn((int64_t)y.size()), of_m = drawn((int64_t)m.size());
    for (int64_t threads = 1; threads <= 3; threads += 2) {
        const Kernels<double> exact(c, in, of_y, of_m, threads);
        const Kernels<float> single(c, in, of_y, of_m, threads);
        for (size_t i = 0; i < y.size(); i++)
            compare("output", c, exact.y[i], y[i], 1.0, 1e-10),
                compare("float output", c, single.y[i], y[i], 1.0, 1e-4);
        for (size_t i = 0; i < m.size(); i++) compare("memory", c, exact.m_last[i], m[i], 1.0, 1e-10);
        Inputs up = in, down = in;
        double slope = 0.0, size = 0.0;
        const double step = 1e-6;
        for (size_t p = 0; p < in.part.size(); p++)
            for (size_t i = 0; i < in.part[p].size(); i++) {
                const double way = uniform(), grad = exact.grads[p][i];
                up.part[p][i] += step * way, down.part[p][i] -= step * way;
                slope += grad * way;
                size += std::fabs(grad * way);
                if (!c.silu && c.layers) continue;  // a kink may lie between the two precisions
                compare("float gradient", c, single.grads[p][i], grad,
                        std::fabs(grad) + 1e-2 * (double)(c.batch * c.steps), 5e-4);
            }
        compare("gradient", c, slope, (loss(c, up, of_y, of_m) - loss(c, down, of_y, of_m)) / (2.0 * step), size, 1e-6);
    }
}

// Branch traces, the first layer's table, the search for events and the discounted sum against plain loops.
template <class R> static void others(const Config &c) {
    const int64_t is_double = sizeof(R) == 8, rows = c.batch * c.steps, width = c.d, pad = elm_padded(is_double, width);
    const double tolerance = is_double ? 1e-10 : 1e-4;
    const Inputs in = inputs(c);
    const std::vector<R> value(in.value.begin(), in.value.end());

    const Array table_ = drawn(c.inputs * width), kappa_ = drawn(width, 0.4, 0.5), initial_ = drawn(c.batch * width),
                grad_ = drawn(rows * width);
    std::vector<R> table(c.inputs * pad, R(0)), kappa(kappa_.begin(), kappa_.end()),
        initial(initial_.begin(), initial_.end());
    std::vector<R> grad(grad_.begin(), grad_.end()), out(rows * width), grad_table(c.inputs * pad, R(0)),
        grad_dense(rows * width), grad_initial(c.batch * width);
    for (int64_t r = 0; r < c.inputs; r++)
        for (int64_t j = 0; j < width; j++) table[r * pad + j] = R(table_[r * width + j]);
    ElmFilter a;
    std::memset(&a, 0, sizeof a);
    a.batch = c.batch, a.num_steps = c.steps, a.width = width, a.table_row = pad, a.num_input = c.inputs, a.wide = 1;
    a.dense_time = width, a.dense_batch = c.steps * width;
    a.begin = in.begin.data(), a.end = in.end.data(), a.channel = in.channel.data(), a.value = value.data(),
    a.table = table.data();
    a.kappa = kappa.data(), a.initial = initial.data(), a.out = out.data();
    failures += elm_filter_forward(is_double, 2, &a) != 0;
    a.grad_out = grad.data(), a.grad_table = grad_table.data(), a.grad_dense = grad_dense.data(),
    a.grad_initial = grad_initial.data();
    failures += elm_filter_backward(is_double, 2, &a) != 0;
    Array wanted(c.inputs * width, 0.0);
    for (int64_t b = 0; b < c.batch; b++)
        for (int64_t j = 0; j < width; j++) {
            double f = initial_[b * width + j], g = 0.0;
            for (int64_t row = b * c.steps; row < (b + 1) * c.steps; row++) {
                f *= kappa_[j];
                for (int64_t e = in.begin[row]; e < in.end[row]; e++)
                    f += in.value[e] * table_[in.channel[e] * width + j];
                compare("trace", c, out[row * width + j], f, std::fabs(f), tolerance);
            }
            for (int64_t row = (b + 1) * c.steps - 1; row >= b * c.steps; row--) {
                g = g * kappa_[j] + grad_[row * width + j];
                compare("gradient of what arrives", c, grad_dense[row * width + j], g, std::fabs(g), tolerance);
                for (int64_t e = in.begin[row]; e < in.end[row]; e++)
                    wanted[in.channel[e] * width + j] += in.value[e] * g;
            }
            compare("gradient of the first trace", c, grad_initial[b * width + j], g * kappa_[j], 1.0, tolerance);
        }
    for (int64_t r = 0; r < c.inputs; r++)
        for (int64_t j = 0; j < width; j++)
            compare("gradient of the table", c, grad_table[r * pad + j], wanted[r * width + j],
                    std::fabs(wanted[r * width + j]), tolerance);

    std::vector<R> sum(c.batch * c.inputs, R(0));
    elm_discount(is_double, c.batch, c.steps, c.inputs, c.steps, 0.9, 1, in.lengths.data(), in.begin.data(),
                 in.end.data(), in.channel.data(), value.data(), sum.data());
    Array discounted(c.batch * c.inputs, 0.0);
    for (int64_t b = 0; b < c.batch; b++)
        for (int64_t t = 0; t < in.lengths[b]; t++)
            for (int64_t e = in.begin[b * c.steps + t]; e < in.end[b * c.steps + t]; e++)
                discounted[b * c.inputs + in.channel[e]] +=
                    std::pow(0.9, (double)(in.lengths[b] - 1 - t)) * in.value[e];
    for (size_t i = 0; i < sum.size(); i++) compare("discounted sum", c, sum[i], discounted[i], 1.0, tolerance);

    for (int kind = 0; kind < 4; kind++) {
        const int routed = kind & 1, rectify = kind >> 1;
        const int64_t branches = routed ? 5 : c.inputs, synapses = routed ? 3 : 1, hidden = c.h, row = branches + c.d,
                      hp = elm_padded(is_double, hidden);
        const Array weight_ = drawn(hidden * row), proto = drawn(branches * synapses);
        Array w_s_ = proto;
        for (double &w : w_s_) w = rectify && w <= 0.0 ? 0.0 : w;
        const std::vector<R> weight(weight_.begin(), weight_.end()), w_s(proto.begin(), proto.end());
        std::vector<int64_t> routing(branches * synapses);
        for (int64_t k = 0; k < branches * synapses; k++)
            routing[k] = routed ? (k % 4 == 3 ? -1 : (k * 5) % c.inputs) : k;
        std::vector<R> made(c.inputs * hp, R(0)), w_m(hidden * c.d), grad_made(c.inputs * hp, R(0)),
            grad_w_m(hidden * c.d, R(1));
        std::vector<R> grad_weight(weight.size()), grad_w_s(w_s.size());
        for (int64_t r = 0; r < c.inputs; r++)
            for (int64_t h = 0; h < hidden; h++) grad_made[r * hp + h] = R(uniform());
        const Array total_ = drawn(c.batch * c.inputs), grad_arrived_ = drawn(c.batch * branches);
        const std::vector<R> total(total_.begin(), total_.end()),
            grad_arrived(grad_arrived_.begin(), grad_arrived_.end());
        std::vector<R> arrived(c.batch * branches), grad_total(total.size(), R(0));
        ElmTable t;
        std::memset(&t, 0, sizeof t);
        t.batch = c.batch, t.total = total.data(), t.arrived = arrived.data();
        t.num_neuron = 1, t.hidden = hidden, t.num_input = c.inputs, t.num_branch = branches, t.num_synapse = synapses,
        t.num_memory = c.d, t.table_row = hp, t.rectify = rectify;
        t.routing = routed ? routing.data() : nullptr, t.weight = weight.data(), t.w_s = w_s.data(),
        t.table = made.data(), t.w_m = w_m.data();
        failures += elm_table_forward(is_double, 1, &t) != 0;
        t.grad_table = grad_made.data(), t.grad_w_m = grad_w_m.data(), t.grad_weight = grad_weight.data(),
        t.grad_w_s = grad_w_s.data(), t.grad_arrived = grad_arrived.data(), t.grad_total = grad_total.data();
        failures += elm_table_backward(is_double, 1, &t) != 0;
        Array table_wanted(c.inputs * hidden, 0.0), weight_wanted(hidden * row, 0.0),
            w_s_wanted(branches * synapses, 0.0);
        for (int64_t k = 0; k < branches * synapses; k++)
            for (int64_t h = 0; h < hidden && routing[k] >= 0; h++) {
                const int64_t w = h * row + k / synapses;
                table_wanted[routing[k] * hidden + h] += weight_[w] * w_s_[k];
                weight_wanted[w] += w_s_[k] * grad_made[routing[k] * hp + h];
                w_s_wanted[k] += weight_[w] * grad_made[routing[k] * hp + h];
            }
        Array arrived_wanted(c.batch * branches, 0.0), total_wanted(c.batch * c.inputs, 0.0);
        for (int64_t b = 0; b < c.batch; b++)
            for (int64_t k = 0; k < branches * synapses; k++) {
                if (routing[k] < 0) continue;
                const int64_t i = b * c.inputs + routing[k], j = b * branches + k / synapses;
                arrived_wanted[j] += w_s_[k] * total_[i];
                total_wanted[i] += w_s_[k] * grad_arrived_[j];
                w_s_wanted[k] += grad_arrived_[j] * total_[i];
            }
        for (size_t j = 0; j < arrived.size(); j++)
            compare("sum on a branch", c, arrived[j], arrived_wanted[j], 1.0, tolerance);
        for (size_t i = 0; i < total.size(); i++)
            compare("gradient of the summed input", c, grad_total[i], total_wanted[i], 1.0, tolerance);
        for (int64_t r = 0; r < c.inputs; r++)
            for (int64_t h = 0; h < hidden; h++)
                compare("table", c, made[r * hp + h], table_wanted[r * hidden + h], 1.0, tolerance);
        for (int64_t h = 0; h < hidden; h++)
            for (int64_t j = 0; j < row; j++)
                compare("gradient of the first layer", c, grad_weight[h * row + j],
                        j < branches ? weight_wanted[h * row + j] : 1.0, 1.0, tolerance);
        // the same without a table, as a single step has it: the sums alone
        ElmTable sums = t;
        sums.hidden = sums.table_row = sums.num_memory = 0;
        sums.weight = nullptr, sums.table = nullptr, sums.w_m = nullptr;
        sums.grad_weight = nullptr, sums.grad_table = nullptr, sums.grad_w_m = nullptr;
        std::vector<R> arrived_alone(arrived.size(), R(7)), grad_total_alone(total.size(), R(0)),
            grad_alone(w_s.size(), R(7));
        sums.arrived = arrived_alone.data(), sums.grad_total = grad_total_alone.data();
        sums.grad_w_s = grad_alone.data();
        failures += elm_table_forward(is_double, 2, &sums) != 0;
        failures += elm_table_backward(is_double, 2, &sums) != 0;
        for (size_t j = 0; j < arrived.size(); j++)
            compare("sum on a branch, without a table", c, arrived_alone[j], arrived_wanted[j], 1.0, tolerance);
        for (size_t i = 0; i < total.size(); i++)
            compare("gradient of the summed input, without a table", c, grad_total_alone[i], total_wanted[i], 1.0,
                    tolerance);
        for (size_t k = 0; k < w_s.size(); k++) {
            double wanted = 0.0;
            for (int64_t b = 0; b < c.batch && routing[k] >= 0 && !(rectify && w_s[k] <= R(0)); b++)
                wanted += grad_arrived_[b * branches + (int64_t)k / synapses] * total_[b * c.inputs + routing[k]];
            compare("gradient of the synapses, without a table", c, grad_alone[k], wanted, 1.0 + std::fabs(wanted),
                    tolerance);
        }
        for (size_t k = 0; k < w_s.size(); k++) w_s_wanted[k] = rectify && w_s[k] <= R(0) ? 0.0 : w_s_wanted[k];
        for (size_t k = 0; k < w_s.size(); k++)
            compare("gradient of the synapses", c, grad_w_s[k], w_s_wanted[k], 1.0 + std::fabs(w_s_wanted[k]),
                    tolerance);
    }

    std::vector<R> frames(rows * c.inputs, R(0));
    int64_t spikes = 0;
    for (R &entry : frames)
        if (uniform() > 0.8) entry = R(uniform()), spikes += entry != R(0);
    std::vector<int64_t> begin(rows), end(rows);
    std::vector<int32_t> channel(spikes);
    std::vector<R> found(spikes);
    ElmFrames f = {c.batch, c.steps,       c.inputs,     c.steps * c.inputs, c.inputs,       spikes,
                   1,       frames.data(), begin.data(), end.data(),         channel.data(), found.data()};
    f.room = spikes - 1;
    if (spikes > 0) failures += (elm_compact(is_double, 1, &f) & 1) != 1;  // they do not fit
    f.room = spikes;
    failures += elm_compact(is_double, 1, &f) != (spikes > 0 ? 2 : 0);  // with values
    for (int64_t row = 0; row < rows; row++)
        for (int64_t k = begin[row]; k < end[row]; k++) {
            compare("event", c, found[k], frames[row * c.inputs + channel[k]], 1.0, 0.0);
            frames[row * c.inputs + channel[k]] = R(1);
        }
    found.assign(spikes, R(7));
    failures += elm_compact(is_double, 1, &f) != 0;  // every event counts 1: no value is written
    for (int64_t row = 0; row < rows; row++)
        for (int64_t k = begin[row]; k < end[row]; k++) {
            compare("value of an event that counts 1", c, found[k], 7.0, 1.0, 0.0);
            frames[row * c.inputs + channel[k]] = R(0);
        }
    for (const R entry : frames) compare("an entry that was not found", c, entry, 0.0, 1.0, 0.0);
}

// A pass in one call each way gives bit for bit what its steps give that are called one by one.
template <class R> static void whole(const Config &c, bool routed, bool weighted, int64_t threads) {
    const int64_t is_double = sizeof(R) == 8, rows = c.batch * c.steps, branches = routed ? 5 : c.inputs,
                  synapses = routed ? 3 : 1, first = c.first(), row = branches + c.d, fp = elm_padded(is_double, first),
                  hp = c.layers * elm_padded(is_double, c.h), dp = elm_padded(is_double, c.d),
                  chunk = elm_chunk(is_double), units = c.batch * c.neurons;
    const Inputs in = inputs(c);
    const auto some = [](int64_t size) {
        const Array x = drawn(size, 0.5);
        return std::vector<R>(x.begin(), x.end());
    };
    std::vector<R> frames(rows * c.inputs, R(0)), kappa_b = {R(0.7)};
    int64_t spikes = 0;
    for (R &entry : frames)
        if (uniform() > 0.8) entry = weighted ? R(uniform()) : R(1), spikes += entry != R(0);
    const std::vector<R> w_s = some(c.neurons * branches * synapses), weight = some(c.neurons * first * row),
                         bias = some(c.neurons * first), kappa = some(c.neurons * c.d), gain = some(c.neurons * c.d),
                         w_y = some(c.neurons * c.outputs * c.d), b_y = some(c.neurons * c.outputs);
    std::vector<std::vector<R>> layers;
    for (int64_t l = 0; l < c.layers; l++) {
        const int64_t out = l + 1 == c.layers ? c.d : c.h;
        layers.push_back(some(c.neurons * out * c.h)), layers.push_back(some(c.neurons * out));
    }
    std::vector<int64_t> routing(branches * synapses);
    for (int64_t k = 0; k < branches * synapses; k++) routing[k] = k % 4 == 3 ? -1 : (k * 5) % c.inputs;
    const std::vector<R> grad_y = some(rows * c.neurons * c.outputs), grad_m = some(units * c.d),
                         grad_b = some(units * branches);
    const auto room = [](int64_t size) { return std::vector<R>(size, R(7)); };
    struct Made {
        std::vector<std::vector<R>> of;
        std::vector<int64_t> begin, end;
        std::vector<int32_t> channel;
    };
    const auto run = [&](bool at_once) {
        Made made = {{}, std::vector<int64_t>(rows), std::vector<int64_t>(rows), std::vector<int32_t>(spikes)};
        std::vector<R> value = room(spikes), total = room(c.batch * c.inputs), table = room(c.neurons * c.inputs * fp),
                       w_m = room(c.neurons * first * c.d), grad_table(table.size(), R(0)), grad_w_m = room(w_m.size()),
                       saved = room(units * (c.steps * (hp + dp) + (c.steps + chunk - 1) / chunk * dp));
        enum { Y, M_LAST, ARRIVED, OF_WEIGHT, OF_W_S, OF_BIAS, OF_KAPPA, OF_GAIN, OF_W_Y, OF_B_Y, OF_LAYERS };
        for (int64_t size : {(int64_t)grad_y.size(), units * c.d, units * branches, (int64_t)weight.size(),
                             (int64_t)w_s.size(), (int64_t)bias.size(), (int64_t)kappa.size(), (int64_t)gain.size(),
                             (int64_t)w_y.size(), (int64_t)b_y.size()})
            made.of.push_back(room(size));
        for (const std::vector<R> &layer : layers) made.of.push_back(room((int64_t)layer.size()));
        int64_t valued = 7;
        ElmPass p;
        std::memset(&p, 0, sizeof p);
        p.search = 1, p.reach = c.steps, p.kappa_b = kappa_b[0], p.weighted = &valued;
        p.frames = {c.batch, c.steps, c.inputs, c.steps * c.inputs, c.inputs, spikes, 1, frames.data(),
                    made.begin.data(), made.end.data(), made.channel.data(), value.data()};
        ElmTable &t = p.table;
        t.num_neuron = c.neurons, t.hidden = first, t.num_input = c.inputs, t.num_branch = branches;
        t.num_synapse = synapses, t.num_memory = c.d, t.table_row = fp, t.rectify = 1, t.batch = c.batch;
        t.routing = routed ? routing.data() : nullptr, t.weight = weight.data(), t.w_s = w_s.data();
        t.total = total.data(), t.table = table.data(), t.w_m = w_m.data(), t.arrived = made.of[ARRIVED].data();
        t.grad_arrived = grad_b.data(), t.grad_weight = made.of[OF_WEIGHT].data(), t.grad_w_s = made.of[OF_W_S].data();
        ElmScan &a = p.scan;
        a.batch = c.batch, a.num_steps = a.all_steps = c.steps, a.num_neuron = c.neurons, a.num_memory = c.d;
        a.num_layers = c.layers, a.hidden = c.layers ? c.h : 0, a.silu = c.silu, a.num_output = c.outputs;
        a.num_input = c.inputs, a.tile = elm_tile(is_double);
        int64_t rest = c.batch % a.tile;
        for (a.num_task = c.batch / a.tile; rest; rest &= rest - 1) a.num_task++;
        a.num_task *= c.neurons;
        a.y_neuron = a.grad_y_neuron = c.outputs, a.y_time = a.grad_y_time = c.neurons * c.outputs;
        a.y_batch = a.grad_y_batch = c.steps * a.y_time, a.w_m_row = c.d, a.w_m_neuron = first * c.d;
        a.begin = made.begin.data(), a.end = made.end.data(), a.channel = made.channel.data(), a.value = value.data();
        a.lengths = c.lengths ? in.lengths.data() : nullptr;
        a.table = table.data(), a.kappa_b = kappa_b.data(), a.bias = bias.data(), a.kappa = kappa.data();
        a.gain = gain.data(), a.w_m = w_m.data(), a.w_y = w_y.data(), a.b_y = b_y.data(), a.saved = saved.data();
        a.y = made.of[Y].data(), a.m_last = made.of[M_LAST].data();
        a.grad_y = grad_y.data(), a.grad_m_last = grad_m.data(), a.grad_bias = made.of[OF_BIAS].data();
        a.grad_kappa = made.of[OF_KAPPA].data(), a.grad_gain = made.of[OF_GAIN].data();
        a.grad_w_y = made.of[OF_W_Y].data(), a.grad_b_y = made.of[OF_B_Y].data();
        for (int64_t l = 0; l < c.layers; l++) {
            a.weight[l] = layers[2 * l].data(), a.layer_bias[l] = layers[2 * l + 1].data();
            a.grad_weight[l] = made.of[OF_LAYERS + 2 * l].data();
            a.grad_layer_bias[l] = made.of[OF_LAYERS + 2 * l + 1].data();
        }
        if (at_once) {
            p.frames.room = spikes - 1;
            if (spikes > 0) failures += elm_pass_forward(is_double, threads, &p) != 3;
            p.frames.room = spikes;
            failures += elm_pass_forward(is_double, threads, &p) != 0;
            failures += valued != (weighted && spikes > 0 ? 2 : 0);
            failures += elm_pass_backward(is_double, threads, &p) != 0;
            std::vector<int64_t> outside(routing);
            outside[0] = c.inputs;
            t.routing = routed ? outside.data() : nullptr;
            failures += routed && elm_pass_forward(is_double, threads, &p) != 2;
            failures += routed && elm_pass_backward(is_double, threads, &p) != 2;
            return made;
        }
        if (elm_compact(is_double, 1, &p.frames) == 0) a.value = nullptr;
        total.assign(total.size(), R(0)), table.assign(table.size(), R(0));
        elm_discount(is_double, c.batch, c.steps, c.inputs, c.steps, p.kappa_b, 0, a.lengths, a.begin, a.end, a.channel,
                     a.value, total.data());
        failures += elm_table_forward(is_double, 1, &t) != 0;
        failures += elm_scan_forward(is_double, 1, &a) != 0;
        a.grad_table = grad_table.data(), a.grad_w_m = grad_w_m.data();
        failures += elm_scan_backward(is_double, 1, &a) != 0;
        t.grad_table = grad_table.data(), t.grad_w_m = grad_w_m.data();
        failures += elm_table_backward(is_double, 1, &t) != 0;
        return made;
    };
    const Made at_once = run(true), apart = run(false);
    for (size_t k = 0; k < apart.of.size(); k++)
        for (size_t i = 0; i < apart.of[k].size(); i++)
            compare("a pass in one call", c, at_once.of[k][i], apart.of[k][i], 1.0, 0.0);
    double wanted = 0.0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < c.inputs / 2; j++) wanted += frames[r * c.inputs + j];
    compare("sum", c, elm_sum(is_double, rows, c.inputs, c.inputs / 2, frames.data()), wanted, 1.0, 1e-10);
}

int main(int argc, char **argv) {
    const Config all[] = {
        // batch, steps, neurons, d, layers, h, silu, outputs, inputs; events, wide, values, lengths, initial, filtered
        {1, 1, 1, 1, 1, 1, 0, 1, 1, true, false, false, false, false, true},
        {3, 5, 1, 2, 0, 3, 0, 2, 7, true, true, true, false, true, true},
        {15, 19, 1, 7, 2, 5, 1, 3, 9, true, false, true, true, true, true},
        {2, 33, 1, 17, 1, 34, 0, 1, 70, false, false, false, false, true, false},
        {9, 18, 1, 16, 3, 16, 1, 17, 65, false, false, false, true, false, true},
        {4, 40, 1, 33, 1, 49, 1, 2, 20, true, true, false, false, true, true},
        {5, 17, 3, 5, 1, 9, 1, 2, 12, true, false, true, true, true, true},
        {2, 131, 2, 3, 0, 4, 0, 1, 5, false, false, false, true, true, true},
        {1, 260, 1, 9, 1, 20, 0, 5, 30, true, false, true, false, false, true},
        // sums of outer products that lie either way, in tiles of every height; readouts of whole vectors
        {9, 20, 1, 20, 1, 40, 1, 64, 12, true, false, false, false, false, true},
        {8, 17, 1, 21, 1, 42, 1, 16, 9, true, false, false, true, true, true},
        {11, 9, 2, 12, 2, 25, 1, 32, 6, true, false, false, true, false, true},
    };
    const int count = argc > 1 ? std::atoi(argv[1]) : (int)(sizeof all / sizeof *all);
    for (int i = 0; i < count; i++) {
        scan(all[i]);
        others<double>(all[i]);
        others<float>(all[i]);
        for (int kind = 0; kind < 4; kind++) {
            whole<double>(all[i], kind & 1, kind >> 1, 1);
            whole<float>(all[i], kind & 1, kind >> 1, 1);
        }
    }
    std::printf("%s: %s\n", elm_isa(), failures ? "failed" : "clean");
    return failures ? 1 : 0;
}

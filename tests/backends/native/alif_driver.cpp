// Drives the kernels of LIF layers without Python, as native_driver.cpp those of the ELM: buffers of exactly the size that
// the interface promises, odd sizes, every option; spikes and gradients against a plain loop in double.
//
//     alif_driver     prints "clean" and returns 0, or says what differs
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "api.h"

extern "C" {
const char *elm_isa();
int64_t elm_padded(int64_t, int64_t);
int64_t elm_alif_chunk();
int64_t elm_alif_saved(int64_t, const ElmAlif *);
int64_t elm_alif_forward(int64_t, int64_t, const ElmAlif *);
int64_t elm_alif_backward(int64_t, int64_t, const ElmAlif *);
}

typedef std::vector<double> Array;
static uint64_t state = 1;
static double uniform() {  // in [0, 1)
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 33) / (double)(1u << 31);
}
static Array drawn(int64_t size, double scale, double shift) {
    Array x(size);
    for (double &entry : x) entry = shift + scale * uniform();
    return x;
}

static int failures = 0;
static void compare(const char *what, double got, double wanted, double tolerance) {
    if (std::fabs(got - wanted) <= tolerance * std::max(1.0, std::fabs(wanted))) return;
    std::printf("%s: got %.12g, wanted %.12g\n", what, got, wanted);
    failures++;
}

struct Config {
    int64_t batch, steps, n, inputs, latency;
    bool events, wide, values, adaptive, recurrent, lengths, detach_reset, detach_recurrent, blocks;
};

template <class R> static std::vector<R> as(const Array &x) { return std::vector<R>(x.begin(), x.end()); }

template <class R> static void drive(const Config &c, bool against) {
    const int64_t is_double = sizeof(R) == 8, n = c.n, B = c.batch, T = c.steps, H = c.latency + 1;
    const int64_t np = elm_padded(is_double, n), rows = B * T;
    std::vector<int64_t> begin, end, wide, lengths;
    for (int64_t row = 0; row < rows; row++) {
        begin.push_back((int64_t)wide.size());
        for (int64_t k = (int64_t)(3 * uniform()); k > 0; k--) wide.push_back((int64_t)(uniform() * (double)c.inputs));
        end.push_back((int64_t)wide.size());
    }
    const std::vector<int32_t> narrow(wide.begin(), wide.end());
    for (int64_t b = 0; b < B; b++) lengths.push_back(c.lengths ? (b * 7 + 3) % (T + 1) : T);
    const Array value = drawn((int64_t)wide.size(), 1.0, 0.2), weight = drawn(c.inputs * n, 1.2, -0.3);
    const Array dense = drawn(c.events ? 0 : rows * n, 1.0, -0.3), bias = drawn(n, 0.1, 0.1), beta = drawn(n, 0.5, 0.4);
    const Array p = drawn(n, 0.5, 0.4), b = drawn(n, 0.5, 0.1), w_rec = drawn(n * n, 1.0, -0.5);
    const Array v_0 = drawn(B * n, 1.0, -0.5), a_0 = drawn(B * n, 0.5, 0.0);
    Array s_0(B * H * n);
    for (double &s : s_0) s = uniform() < 0.1;
    const Array gs = drawn(rows * n, 2.0, -1.0), gv = drawn(B * n, 2.0, -1.0), ga = drawn(B * n, 2.0, -1.0);
    const Array gh = drawn(B * H * n, 2.0, -1.0);

    const int64_t inputs = c.events ? c.inputs : 0, senders = inputs + (c.recurrent ? n : 0);  // rows of the table
    std::vector<R> table(senders * np), value_ = as<R>(value), dense_ = as<R>(dense), bias_ = as<R>(bias);
    for (int64_t i = 0; i < senders; i++)
        for (int64_t j = 0; j < n; j++)
            table[i * np + j] = R(i < inputs ? weight[i * n + j] : w_rec[j * n + i - inputs]);
    std::vector<R> beta_ = as<R>(beta), p_ = as<R>(p), b_ = as<R>(b), w_ = as<R>(w_rec), v0 = as<R>(v_0), a0 = as<R>(a_0);
    std::vector<R> s0 = as<R>(s_0), spikes(rows * n), v(B * n), a(B * n), h(B * H * n);
    ElmAlif x = {};
    x.batch = B, x.num_steps = T, x.num_neuron = n, x.num_input = inputs, x.latency = c.latency;
    x.chunk = c.recurrent ? std::min(elm_alif_chunk(), H) : elm_alif_chunk();
    x.wide = c.wide, x.dense_batch = T * n, x.dense_time = n, x.spikes_batch = T * n, x.spikes_time = n;
    x.grad_batch = T * n, x.grad_time = n, x.surrogate = ELM_FAST_SIGMOID, x.setting[0] = 3.0;
    x.detach_reset = c.detach_reset, x.detach_recurrent = c.detach_recurrent, x.blocks = c.blocks;
    if (c.events) {
        x.begin = begin.data(), x.end = end.data();
        x.channel = c.wide ? (const void *)wide.data() : narrow.data();
        x.value = c.values ? value_.data() : nullptr;
    } else {
        x.dense = dense_.data();
    }
    x.table = senders ? table.data() : nullptr, x.lengths = c.lengths ? lengths.data() : nullptr;
    x.bias = bias_.data(), x.beta = beta_.data(), x.p = c.adaptive ? p_.data() : nullptr;
    x.b = c.adaptive ? b_.data() : nullptr, x.w_rec = c.recurrent ? w_.data() : nullptr;
    x.v_0 = v0.data(), x.a_0 = a0.data(), x.s_0 = s0.data();
    x.spikes = spikes.data(), x.v_last = v.data(), x.a_last = a.data(), x.s_last = h.data();
    std::vector<R> saved(elm_alif_saved(is_double, &x));
    x.saved = saved.data();
    failures += elm_alif_forward(is_double, 2, &x) != 0;

    std::vector<R> gs_ = as<R>(gs), gv_ = as<R>(gv), ga_ = as<R>(ga), gh_ = as<R>(gh);
    std::vector<R> gt(senders * np), gd(c.events ? 0 : rows * n), gv0(B * n), ga0(B * n), gs0(B * H * n), gbias(n);
    std::vector<R> gbeta(n), gp(n), gb(n);
    x.grad_spikes = gs_.data(), x.grad_v_last = gv_.data(), x.grad_a_last = ga_.data(), x.grad_s_last = gh_.data();
    x.grad_table = senders ? gt.data() : nullptr, x.grad_dense = c.events ? nullptr : gd.data();
    x.grad_v_0 = gv0.data(), x.grad_a_0 = ga0.data(), x.grad_s_0 = gs0.data(), x.grad_bias = gbias.data();
    x.grad_beta = gbeta.data(), x.grad_p = c.adaptive ? gp.data() : nullptr;
    x.grad_b = c.adaptive ? gb.data() : nullptr;
    failures += elm_alif_backward(is_double, 2, &x) != 0;
    if (!against) return;

    // The plain loop: `train` holds remembered and new spikes, entry t + H that of step t.
    Array wanted_bias(n), wanted_beta(n), wanted_p(n), wanted_b(n), wanted_w(n * n), wanted_table(c.inputs * n);
    for (int64_t s = 0; s < B; s++) {
        const int64_t len = lengths[s];
        Array train((len + H) * n), vs((len + 1) * n), as_((len + 1) * n), ms(len * n), xs(len * n), mask(len * n);
        Array arrived(len * n);
        std::copy(s_0.begin() + s * H * n, s_0.begin() + (s + 1) * H * n, train.begin());
        std::copy(v_0.begin() + s * n, v_0.begin() + (s + 1) * n, vs.begin());
        std::copy(a_0.begin() + s * n, a_0.begin() + (s + 1) * n, as_.begin());
        for (int64_t t = 0; t < len; t++)
            for (int64_t j = 0; j < n; j++) {
                double current = bias[j] + (c.events ? 0.0 : dense[(s * T + t) * n + j]);
                for (int64_t e = begin[s * T + t]; c.events && e < end[s * T + t]; e++)
                    current += (c.values ? value[e] : 1.0) * weight[wide[e] * n + j];
                for (int64_t k = 0; c.recurrent && k < n; k++) current += w_rec[j * n + k] * train[t * n + k];
                arrived[t * n + j] = current;
                double free = 1.0;
                for (int64_t l = 1; l <= c.latency; l++) free *= 1.0 - train[(t + H - l) * n + j];
                const double m = beta[j] * vs[t * n + j] + free * current;
                const double distance = m - 1.0 - (c.adaptive ? b[j] * as_[t * n + j] : 0.0), fires = distance > 0.0;
                ms[t * n + j] = m, xs[t * n + j] = distance, mask[t * n + j] = free, train[(t + H) * n + j] = fires;
                vs[(t + 1) * n + j] = m * (1.0 - fires);
                as_[(t + 1) * n + j] = c.adaptive ? p[j] * as_[t * n + j] + fires : as_[t * n + j];
                compare("spike", spikes[(s * T + t) * n + j], fires, 0.0);
            }
        for (int64_t t = len; t < T; t++)
            for (int64_t j = 0; j < n; j++) compare("a spike past the end", spikes[(s * T + t) * n + j], 0.0, 0.0);
        Array dv(gv.begin() + s * n, gv.begin() + (s + 1) * n), da(ga.begin() + s * n, ga.begin() + (s + 1) * n);
        Array ds((len + H) * n), dc(n);
        for (int64_t k = 0; k < H * n; k++) ds[len * n + k] += gh[s * H * n + k];
        const auto collect = [&](int64_t t) {  // from the gradients `dc` of the currents of a step
            for (int64_t j = 0; j < n; j++) {
                wanted_bias[j] += dc[j];
                if (!c.events) compare("gradient of a current", gd[(s * T + t) * n + j], dc[j], 1e-9);
                for (int64_t e = begin[s * T + t]; c.events && e < end[s * T + t]; e++)
                    wanted_table[wide[e] * n + j] += (c.values ? value[e] : 1.0) * dc[j];
                for (int64_t k = 0; c.recurrent && k < n; k++) wanted_w[j * n + k] += dc[j] * train[t * n + k];
            }
        };
        for (int64_t first = (len - 1) / H * H; c.blocks && len && first >= 0; first -= H) {
            const int64_t K = std::min(H, len - first);
            Array currents(K * n);
            for (int64_t j = 0; j < n; j++) {
                Array u(K + 1), slope(K), free_a(K + 1), free(K);
                u[0] = vs[first * n + j], free_a[0] = as_[first * n + j];
                double crossed = 0.0, d_free = 0.0, once = 0.0, twice = 0.0;
                for (int64_t k = 0; k < K; k++) {
                    free[k] = 1.0;  // by spikes before the block
                    for (int64_t l = k + 1; l <= c.latency; l++) free[k] *= 1.0 - train[(first + k + H - l) * n + j];
                    u[k + 1] = beta[j] * u[k] + free[k] * arrived[(first + k) * n + j];
                    const double around = 1.0 + 3.0 * std::fabs(u[k + 1] - 1.0 - (c.adaptive ? b[j] * free_a[k] : 0.0));
                    slope[k] = 1.0 / (around * around), free_a[k + 1] = p[j] * free_a[k];
                    crossed += train[(first + k + H) * n + j];
                }
                double du = crossed ? 0.0 : dv[j], d_after = da[j];
                for (int64_t k = K - 1; k >= 0; k--) {
                    const int64_t t = first + k;
                    once += gs[(s * T + t) * n + j] + ds[(t + H) * n + j], twice += once;
                    const double dx = twice * slope[k];
                    du += dx;
                    if (c.adaptive) {
                        wanted_b[j] -= dx * free_a[k], wanted_p[j] += d_free * free_a[k] + d_after * as_[t * n + j];
                        d_free = p[j] * d_free - b[j] * dx, d_after = p[j] * d_after;
                    }
                    wanted_beta[j] += du * u[k], currents[k * n + j] = du * free[k], du = beta[j] * du;
                }
                dv[j] = du, da[j] = d_after + d_free;
            }
            for (int64_t k = K - 1; k >= 0; k--) {
                std::copy(currents.begin() + k * n, currents.begin() + (k + 1) * n, dc.begin());
                collect(first + k);
            }
        }
        for (int64_t t = len - 1; !c.blocks && t >= 0; t--) {
            for (int64_t j = 0; j < n; j++) {
                double g = gs[(s * T + t) * n + j] + ds[(t + H) * n + j] + (c.adaptive ? da[j] : 0.0);
                if (!c.detach_reset) g -= ms[t * n + j] * dv[j];
                const double around = 1.0 + 3.0 * std::fabs(xs[t * n + j]), dx = g / (around * around);
                const double dm = dx + dv[j] * (1.0 - train[(t + H) * n + j]), earlier = as_[t * n + j];
                if (c.adaptive) wanted_b[j] -= dx * earlier, wanted_p[j] += da[j] * earlier, da[j] = p[j] * da[j] - b[j] * dx;
                dc[j] = dm * mask[t * n + j], wanted_beta[j] += dm * vs[t * n + j];
                dv[j] = beta[j] * dm;
            }
            collect(t);
            for (int64_t j = 0; c.recurrent && !c.detach_recurrent && j < n; j++)
                for (int64_t k = 0; k < n; k++) ds[t * n + k] += w_rec[j * n + k] * dc[j];
        }
        for (int64_t j = 0; j < n; j++) {
            compare("membrane", v[s * n + j], vs[len * n + j], 1e-12);
            compare("adaptation", a[s * n + j], as_[len * n + j], 1e-12);
            compare("gradient of the membrane", gv0[s * n + j], dv[j], 1e-9);
            compare("gradient of the adaptation", ga0[s * n + j], da[j], 1e-9);
        }
        for (int64_t k = 0; k < H * n; k++) {
            compare("remembered spike", h[s * H * n + k], train[len * n + k], 0.0);
            compare("gradient of a remembered spike", gs0[s * H * n + k], ds[k], 1e-9);
        }
    }
    for (int64_t j = 0; j < n; j++) {
        compare("gradient of the bias", gbias[j], wanted_bias[j], 1e-9);
        compare("gradient of beta", gbeta[j], wanted_beta[j], 1e-9);
        if (c.adaptive) compare("gradient of p", gp[j], wanted_p[j], 1e-9);
        if (c.adaptive) compare("gradient of b", gb[j], wanted_b[j], 1e-9);
        for (int64_t k = 0; c.recurrent && k < n; k++)
            compare("gradient of a recurrent weight", gt[(inputs + k) * np + j], wanted_w[j * n + k], 1e-9);
        for (int64_t i = 0; c.events && i < c.inputs; i++)
            compare("gradient of a weight", gt[i * np + j], wanted_table[i * n + j], 1e-9);
    }
}

int main() {
    const Config all[] = {
        // batch, steps, neurons, inputs, latency; events, wide, values, adaptive, recurrent, lengths, detached twice, blocks
        {1, 1, 1, 1, 0, true, false, false, true, false, false, true, true, false},
        {3, 70, 17, 5, 0, false, false, false, true, true, true, true, true, false},
        {2, 65, 33, 9, 4, true, true, true, true, true, true, false, false, false},
        {2, 33, 16, 7, 40, true, false, false, false, true, false, true, false, false},
        {5, 31, 3, 2, 1, false, false, false, false, false, true, false, true, false},
        {4, 100, 40, 20, 20, true, true, false, true, false, true, true, true, false},
        {3, 97, 7, 6, 2, false, false, false, true, true, true, false, false, false},
        {1, 9, 2, 2, 0, true, false, false, true, true, false, true, true, true},
        {3, 97, 17, 6, 4, false, false, false, true, true, true, true, true, true},
        {2, 150, 33, 9, 50, true, true, true, true, true, true, true, true, true},
        {4, 70, 5, 7, 2, true, false, true, false, false, true, true, true, true},
    };
    for (const Config &c : all) {
        drive<double>(c, true);
        drive<float>(c, false);
    }
    std::printf("%s: %s\n", elm_isa(), failures ? "failed" : "clean");
    return failures ? 1 : 0;
}

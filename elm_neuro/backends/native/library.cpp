// The library's face in C: picks the kernels for this processor and spreads a call over threads that live as long as
// the call.
//
// They are torch's own where it lends them: its idle OpenMP threads wait spinning, and others beside them would have to
// share their cores. Otherwise, and in a forked child, where that pool is gone, threads are started for the call and
// never kept. The caller says how many. Longer than most files: every call that Python makes stands in one.
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "api.h"
#include "effective.h"

#define ELM_DECLARE(isa)                             \
    namespace isa {                                  \
    extern const ElmKernels table[2];                \
    extern const ElmAlifKernels alif_table[2];       \
    extern const ElmNetworkKernels network_table[2]; \
    }
ELM_DECLARE(baseline)
#ifdef ELM_X86
ELM_DECLARE(avx2)
ELM_DECLARE(avx512)
#endif

namespace {

enum { MAX_THREADS = 256 };

struct Choice {
    const ElmKernels *table;
    const ElmAlifKernels *alif_table;
    const ElmNetworkKernels *network_table;
    const char *name;
};

Choice choose() {
    const char *limit = std::getenv("ELM_NEURO_ISA");  // "baseline" or "avx2": no more than this, for tests
#ifdef ELM_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    const bool low = limit && !std::strcmp(limit, "baseline"), middle = limit && !std::strcmp(limit, "avx2");
    if (avx512 && !low && !middle) return {avx512::table, avx512::alif_table, avx512::network_table, "avx512"};
    if (avx2 && !low) return {avx2::table, avx2::alif_table, avx2::network_table, "avx2"};
#endif
    (void)limit;
    return {baseline::table, baseline::alif_table, baseline::network_table, "baseline"};
}

const Choice chosen = choose();

const ElmKernels &kernels(int64_t is_double) { return chosen.table[is_double ? 1 : 0]; }
const ElmAlifKernels &alif_kernels(int64_t is_double) { return chosen.alif_table[is_double ? 1 : 0]; }

const ElmNetworkKernels &network_kernels(int64_t is_double) { return chosen.network_table[is_double ? 1 : 0]; }

template <class Args> struct Job {
    void (*work)(const Args *, ElmShare *);
    const Args *args;
    ElmShare *share;
};

template <class Args> void *start(void *job) {
    Job<Args> *mine = static_cast<Job<Args> *>(job);
    mine->work(mine->args, mine->share);
    return nullptr;
}

// What a pool calls on each of its threads: jobs are taken until there is none left, however many threads came.
template <class Args> struct Team {
    Job<Args> *jobs;
    int64_t count, next;
};

template <class Args> void take_jobs(void *data) {
    Team<Args> *team = static_cast<Team<Args> *>(data);
    for (int64_t k; (k = __atomic_fetch_add(&team->next, 1, __ATOMIC_RELAXED)) < team->count;)
        start<Args>(team->jobs + k);
}

using Parallel = void (*)(void (*)(void *), void *, unsigned,
                          unsigned);  // GOMP_parallel of the OpenMP library that torch uses
Parallel lent = nullptr;
pid_t owner = 0;

// `count` pieces of work in equal runs over at most `threads` threads, this one among them; returns how many runs there
// were.
template <class Args>
int64_t spread(void (*work)(const Args *, ElmShare *), const Args *args, int64_t count, int64_t threads,
               ElmShare *share) {
    if (threads > count) threads = count;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads < 1) threads = 1;
    pthread_t handle[MAX_THREADS];
    Job<Args> job[MAX_THREADS];
    bool running[MAX_THREADS] = {};
    for (int64_t k = 0; k < threads; k++) {
        share[k] = {count * k / threads, count * (k + 1) / threads, k, nullptr, 0};
        job[k] = {work, args, share + k};
    }
    if (threads > 1 && lent && getpid() == owner) {
        Team<Args> team{job, threads, 0};
        lent(take_jobs<Args>, &team, static_cast<unsigned>(threads), 0);
        return threads;
    }
    for (int64_t k = 1; k < threads; k++) running[k] = pthread_create(handle + k, nullptr, start<Args>, job + k) == 0;
    for (int64_t k = 0; k < threads; k++)
        if (!running[k]) work(args, share + k);  // the first share, and those for which no thread was to be had
    for (int64_t k = 1; k < threads; k++)
        if (running[k]) pthread_join(handle[k], nullptr);
    return threads;
}

// Threads for about `work` multiply-adds, at most `most`: fewer where starting them would take longer than the work.
int64_t threads_for(double work, int64_t most) {
    const double wanted = work / 2e6;
    return wanted < 1.0 ? 1 : wanted < (double)most ? (int64_t)wanted : most;
}

int64_t threads_for(const ElmScan &a, int64_t most) {
    const int64_t width = a.num_memory + 2 * a.hidden * (a.num_layers > 1 ? a.num_layers : 1);
    return threads_for((double)(a.batch * a.num_steps * a.num_neuron) * (double)(a.num_memory * width), most);
}

// The same where the shares leave nothing behind but their status.
template <class Args>
int64_t spread(void (*work)(const Args *, ElmShare *), const Args *args, int64_t count, int64_t threads) {
    ElmShare share[MAX_THREADS];
    const int64_t used = spread(work, args, count, threads, share);
    int64_t status = 0;
    for (int64_t k = 0; k < used; k++) status |= share[k].status;
    return status;
}

// out[b][c] += sum over the last `reach` steps of sample b's events c of kappa^(length - 1 - t) value.
template <class R, class I> void discount(const ElmScan &a, int64_t reach, double kappa, R *out) {
    const I *channel = static_cast<const I *>(a.channel);
    const R *value = static_cast<const R *>(a.value);
    for (int64_t b = 0; b < a.batch; b++, out += a.num_input) {
        const int64_t last = a.lengths ? a.lengths[b] : a.num_steps;
        double factor = 1.0;
        for (int64_t t = last - 1; t >= 0 && last - t <= reach; t--, factor *= kappa)
            for (int64_t e = a.begin[b * a.num_steps + t]; e < a.end[b * a.num_steps + t]; e++)
                out[channel[e]] += R(factor) * (value ? value[e] : R(1));
    }
}

// Sum over `rows` rows of `size` entries, in as many sums as a register has room for.
template <class R> double sum(int64_t rows, int64_t stride, int64_t size, const R *from) {
    double sums[8] = {};
    for (int64_t i = 0; i < rows; i++, from += stride) {
        int64_t j = 0;
        for (; j + 8 <= size; j += 8)
            for (int k = 0; k < 8; k++) sums[k] += from[j + k];
        for (; j < size; j++) sums[0] += from[j];
    }
    double total = 0.0;
    for (double part : sums) total += part;
    return total;
}

void discount(int64_t is_double, const ElmScan &a, int64_t reach, double kappa, void *out) {
    if (is_double)
        a.wide ? discount<double, int64_t>(a, reach, kappa, (double *)out)
               : discount<double, int32_t>(a, reach, kappa, (double *)out);
    else
        a.wide ? discount<float, int64_t>(a, reach, kappa, (float *)out)
               : discount<float, int32_t>(a, reach, kappa, (float *)out);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

const char *elm_sources() { return ELM_SOURCES; }
const char *elm_isa() { return chosen.name; }
void elm_lend(void *parallel) {
    lent = reinterpret_cast<Parallel>(parallel);
    owner = getpid();
}
int64_t elm_padded(int64_t is_double, int64_t size) { return kernels(is_double).padded(size); }
int64_t elm_tile(int64_t is_double) { return kernels(is_double).tile; }
int64_t elm_chunk(int64_t is_double) { return kernels(is_double).chunk; }

// Bytes of a struct of api.h, -1 for one that there is not.
int64_t elm_size_of(const char *name) {
    if (!std::strcmp(name, "ElmScan")) return sizeof(ElmScan);
    if (!std::strcmp(name, "ElmFilter")) return sizeof(ElmFilter);
    if (!std::strcmp(name, "ElmFrames")) return sizeof(ElmFrames);
    if (!std::strcmp(name, "ElmTable")) return sizeof(ElmTable);
    if (!std::strcmp(name, "ElmPass")) return sizeof(ElmPass);
    if (!std::strcmp(name, "ElmAlif")) return sizeof(ElmAlif);
    if (!std::strcmp(name, "ElmNetwork")) return sizeof(ElmNetwork);
    if (!std::strcmp(name, "ElmEffective")) return sizeof(ElmEffective);
    return -1;
}

// 0, or 1 where there was not enough memory: then what they were to write is undefined.
int64_t elm_scan_forward(int64_t is_double, int64_t threads, const ElmScan *args) {
    return spread(kernels(is_double).scan_forward, args, args->num_task, threads);
}

int64_t elm_scan_backward(int64_t is_double, int64_t threads, const ElmScan *args) {
    ElmShare share[MAX_THREADS];
    const int64_t used = spread(kernels(is_double).scan_backward, args, args->num_task, threads, share);
    return kernels(is_double).scan_reduce(args, share, used);
}

int64_t elm_filter_forward(int64_t is_double, int64_t threads, const ElmFilter *args) {
    return spread(kernels(is_double).filter_forward, args, args->batch, threads);
}

int64_t elm_filter_backward(int64_t is_double, int64_t threads, const ElmFilter *args) {
    const int64_t lanes = kernels(is_double).lanes;
    return spread(kernels(is_double).filter_backward, args, (args->width + lanes - 1) / lanes, threads);
}

// Whether a slot is routed to an input that is not there: its row would lie outside of the table.
static bool leads_outside(const ElmTable *args) {
    const int64_t neurons = args->routing_neuron ? args->num_neuron : 1;
    int64_t sign = 0;  // negative as soon as one of the differences is
    for (int64_t k = 0; args->routing && k < neurons * args->num_branch * args->num_synapse; k++)
        sign |= args->num_input - 1 - args->routing[k];
    return sign < 0;
}

// 0; 1 where there was not enough memory, 2 where the routing leads outside: then nothing is written.
int64_t elm_table_forward(int64_t is_double, int64_t threads, const ElmTable *args) {
    if (leads_outside(args)) return 2;
    return spread(kernels(is_double).table_forward, args, args->num_neuron, threads);
}

int64_t elm_table_backward(int64_t is_double, int64_t threads, const ElmTable *args) {
    if (leads_outside(args)) return 2;
    const int64_t status = spread(kernels(is_double).table_backward, args, args->num_neuron, threads);
    if (!status && args->grad_total && args->grad_arrived)
        spread(kernels(is_double).total_backward, args, args->batch, threads);
    return status;
}

// Bit 0 where the events do not fit, bit 1 where one of them does not count 1.
int64_t elm_compact(int64_t is_double, int64_t threads, const ElmFrames *args) {
    return spread(kernels(is_double).compact, args, args->batch, threads < args->num_part ? threads : args->num_part);
}

// The last `reach` steps of each sample's events, discounted to its end, added to `total`, (batch, num_input).
void elm_discount(int64_t is_double, int64_t batch, int64_t num_steps, int64_t num_input, int64_t reach, double kappa,
                  int64_t wide, const int64_t *lengths, const int64_t *begin, const int64_t *end, const void *channel,
                  const void *value, void *total) {
    ElmScan events = {};
    events.batch = batch, events.num_steps = num_steps, events.num_input = num_input, events.wide = wide;
    events.lengths = lengths, events.begin = begin, events.end = end, events.channel = channel, events.value = value;
    discount(is_double, events, reach, kappa, total);
}

// What a pass's recurrence reads: values only where an event counts other than 1.
static ElmScan scan_of(const ElmPass *p) {
    ElmScan scan = p->scan;
    if (p->weighted && !*p->weighted) scan.value = nullptr;
    return scan;
}

// 0; 1 where there was not enough memory, 2 where the routing leads outside, 3 where there are more events than room.
int64_t elm_pass_forward(int64_t is_double, int64_t most, const ElmPass *p) {
    const ElmTable &table = p->table;
    if (leads_outside(&table)) return 2;
    if (p->search) {
        ElmFrames frames = p->frames;
        frames.num_part = threads_for((double)(frames.batch * frames.num_steps * frames.num_input), most);
        if (frames.num_part > frames.batch) frames.num_part = frames.batch;
        frames.room /= frames.num_part;
        const int64_t status = elm_compact(is_double, frames.num_part, &frames);
        if (status & 1) return 3;
        *p->weighted = status;
    }
    const ElmScan scan = scan_of(p);
    const size_t entry = is_double ? sizeof(double) : sizeof(float);
    std::memset((void *)table.total, 0, (size_t)(table.batch * table.num_input) * entry);
    discount(is_double, scan, p->reach, p->kappa_b, (void *)table.total);
    std::memset(table.table, 0, (size_t)(table.num_neuron * table.num_input * table.table_row) * entry);
    const int64_t work = table.num_neuron * table.hidden * (table.num_branch + table.num_memory);
    if (spread(kernels(is_double).table_forward, &table, table.num_neuron, threads_for((double)work, most))) return 1;
    return elm_scan_forward(is_double, threads_for(scan, most), &scan);
}

// The same way back, without a search.
int64_t elm_pass_backward(int64_t is_double, int64_t most, const ElmPass *p) {
    ElmTable table = p->table;
    ElmScan scan = scan_of(p);
    if (leads_outside(&table)) return 2;
    const size_t entry = is_double ? sizeof(double) : sizeof(float);
    const size_t of_table = (size_t)(table.num_neuron * table.num_input * table.table_row) * entry,
                 of_w_m = (size_t)(table.num_neuron * table.hidden * table.num_memory) * entry;
    void *room = nullptr;
    if (posix_memalign(&room, 64, of_table + of_w_m)) return 1;
    std::memset(room, 0, of_table);
    scan.grad_table = room;
    scan.grad_w_m = (char *)room + of_table;
    table.grad_table = scan.grad_table;
    table.grad_w_m = scan.grad_w_m;
    int64_t status = elm_scan_backward(is_double, threads_for(scan, most), &scan);
    const int64_t work = table.num_neuron * table.hidden * (table.num_branch + table.num_memory);
    if (!status) status = elm_table_backward(is_double, threads_for((double)work, most), &table);
    free(room);
    return status;
}

// 0; bit 0 where there was not enough memory, bit 1 where a remembered spike is neither 0 nor 1.
int64_t elm_alif_forward(int64_t is_double, int64_t threads, const ElmAlif *args) {
    return spread(alif_kernels(is_double).forward, args, args->batch, threads);
}

int64_t elm_alif_chunk() { return ELM_ALIF_CHUNK; }

// Entries of what the backward pass reads.
int64_t elm_alif_saved(int64_t is_double, const ElmAlif *args) { return alif_kernels(is_double).saved(args); }

int64_t elm_alif_backward(int64_t is_double, int64_t threads, const ElmAlif *args) {
    ElmShare share[MAX_THREADS];
    const int64_t used = spread(alif_kernels(is_double).backward, args, args->batch, threads, share);
    return alif_kernels(is_double).reduce(args, share, used);
}

// Samples that a task of a layer of ELM neurons takes: one a lane of its vectors, or a single one and lanes of neurons.
int64_t elm_network_lanes(int64_t is_double, int64_t batch, int64_t num_neuron, int64_t num_steps, int64_t threads) {
    return network_kernels(is_double).lanes(batch, num_neuron, num_steps, threads);
}

// Entries of what the backward pass reads.
int64_t elm_network_saved(int64_t is_double, const ElmNetwork *args) { return network_kernels(is_double).saved(args); }

// Whether a synapse reads a source that is not there.
static bool reads_outside(const ElmNetwork *args) {
    const uint64_t sources = (uint64_t)(args->num_input + args->num_neuron);
    bool outside = false;
    for (int64_t k = 0; k < args->num_neuron * args->num_branch * args->num_synapse; k++)
        outside |= (uint64_t)args->index[k] >= sources;
    return outside;
}

static int64_t network_tasks(const ElmNetwork *args) { return (args->batch + args->lanes - 1) / args->lanes; }

// 0; 1 where there was not enough memory, 2 where a synapse leads outside: then nothing is written.
int64_t elm_network_forward(int64_t is_double, int64_t threads, const ElmNetwork *args) {
    if (reads_outside(args)) return 2;
    return spread(network_kernels(is_double).forward, args, network_tasks(args), threads);
}

int64_t elm_network_backward(int64_t is_double, int64_t threads, const ElmNetwork *args) {
    if (reads_outside(args)) return 2;
    ElmShare share[MAX_THREADS];
    const int64_t used = spread(network_kernels(is_double).backward, args, network_tasks(args), threads, share);
    return network_kernels(is_double).reduce(args, share, used);
}

// 0 where the rows, from `begin` to `end`, rise within the events and every channel is an input; else 1. What has been
// checked when the events were made may have been changed since, and the kernels read wherever they are told to.
int64_t elm_check_events(int64_t num_row, int64_t num_event, int64_t num_input, const int64_t *begin,
                         const int64_t *end, const int64_t *channel) {
    const auto less = [](int64_t a, int64_t b) { return (int64_t)((uint64_t)a - (uint64_t)b); };
    int64_t sign = 0, last = 0;  // negative as soon as one of these numbers is
    for (int64_t row = 0; row < num_row; last = end[row++])
        sign |= begin[row] | end[row] | less(begin[row], last) | less(end[row], begin[row]);
    sign |= less(num_event, last);
    for (int64_t e = 0; e < num_event; e++) sign |= channel[e] | less(num_input - 1, channel[e]);
    return sign < 0;
}

void elm_effective_backward(int64_t is_double, const ElmEffective *args) {
    is_double ? effective_backward<double>(*args) : effective_backward<float>(*args);
}

double elm_sum(int64_t is_double, int64_t rows, int64_t stride, int64_t size, const void *from) {
    return is_double ? sum(rows, stride, size, (const double *)from) : sum(rows, stride, size, (const float *)from);
}

// Asks for large pages where the system gives them on request: a buffer's first touch costs a fault for each.
void elm_advise(void *start, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    const uintptr_t page = 1 << 21, from = ((uintptr_t)start + page - 1) / page * page,
                    to = ((uintptr_t)start + (uintptr_t)bytes) / page * page;
    if (from < to) madvise((void *)from, to - from, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}

// Memory of whole large pages, to be given back to elm_free; null where there is none.
void *elm_room(int64_t bytes) {
    const size_t page = 1 << 21, whole = ((size_t)bytes + page - 1) / page * page;
    void *start = nullptr;
    if (posix_memalign(&start, page, whole)) return nullptr;
    elm_advise(start, (int64_t)whole);
    return start;
}
void elm_free(void *start) { free(start); }

}

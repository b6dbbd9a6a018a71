// Sequences of operations, one for each sample of a batch.
//
// Samples do not depend on each other. If there are enough of them for all threads, each is computed by one thread,
// which need not wait for the others after every operation.

#include <algorithm>

extern "C" {

struct Call {
    void (*function)(const void* operation, int threads);
    const void* operation;
};

struct Sequence {
    const Call* calls;
    int count;
};

void run(const Sequence* sequences, int samples, int threads) {
    const auto compute = [&](int sample, int with_threads) {
        for (int k = 0; k < sequences[sample].count; ++k) {
            const Call& call = sequences[sample].calls[k];
            call.function(call.operation, with_threads);
        }
    };
    if (threads > samples) {
        for (int sample = 0; sample < samples; ++sample) compute(sample, threads);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int sample = 0; sample < samples; ++sample) compute(sample, 1);
}
}

// Jobs submitted, awaited, cancelled and closed from many threads at once, for ThreadSanitizer to watch.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>

#include "../copier.hpp"
#include "../digest.hpp"

using namespace kvferry;

namespace {

constexpr std::size_t SIZE = 40000;

Window window(const std::vector<char> &memory) { return {reinterpret_cast<std::size_t>(memory.data()), memory.size()}; }

Plan random_plan(std::mt19937 &random) {
    Plan plan;
    if (random() % 2 == 0) {
        Runs runs;
        for (std::int64_t at = 0; at < 30000; at += 1000) {
            runs.sources.push_back(at);
            runs.destinations.push_back(29000 - at);
            runs.lengths.push_back(static_cast<std::int64_t>(random() % 1000));
        }
        plan.add(std::move(runs));
    }
    plan.add(Region{{0, 5000}, {30000, 35000}, {{4, 1000, 1000}, {3, 200, 300}}, 150});
    return plan;
}

void use(Copier &copier, unsigned seed) {
    std::mt19937 random(seed);
    for (int turn = 0; turn < 200; ++turn) {
        const std::vector<char> source(SIZE, 1);
        const std::vector<char> destination(SIZE, 0);
        try {
            const JobPointer job =
                copier.submit(random_plan(random), window(source), window(destination), random() % 3, random() % 2 == 0);
            if (random() % 3 == 0)
                copier.cancel(job);
            while (!copier.wait(job, 0.01)) {
            }
            // What was copied is visible to whoever saw the end.
            std::size_t found = 0;
            for (const char byte : destination)
                found += byte == 1;
            if (found != job->copied_bytes.load())
                std::abort();
        } catch (const CopierUnusable &) {
            return;
        }
    }
}

// Digests by several threads, some of them cancelled: what was not cancelled has one thread's sums.
void digest_and_cancel(unsigned seed) {
    std::vector<char> memory(std::size_t{6} << 20);
    std::mt19937 random(seed);
    for (char &byte : memory)
        byte = static_cast<char>(random());
    DigestRegion region{{}, {}, {}, {}, {0, 256}, {1, 2}, 2, 512, 2, 128, 2, 2};
    for (std::int64_t i = 0; i < 700; ++i) {
        region.bases.push_back(i * 8192);
        region.tokens.push_back(16 * i);
        region.counts.push_back(16);
        region.rows.push_back(i % 2);
    }
    const WordKeys keys{};
    std::vector<std::uint64_t> expected(4);
    digest(region, window(memory), keys, expected.data(), {1, nullptr, ""});
    for (int turn = 0; turn < 10; ++turn) {
        std::atomic<bool> cancelled{false};
        std::vector<std::uint64_t> sums(4);
        std::thread canceller([&, cancels = turn % 2 == 0] { cancelled.store(cancels); });
        const bool whole = digest(region, window(memory), keys, sums.data(), {4, &cancelled, ""});
        canceller.join();
        if (whole && sums != expected)
            std::abort();
    }
}

} // namespace

int main() {
    for (unsigned seed = 0; seed < 3; ++seed)
        digest_and_cancel(seed);
    for (unsigned round = 0; round < 10; ++round) {
        const std::uint64_t stream_bytes_min = round % 2 == 0 ? 1 : SIZE_MAX;
        const auto copier = Copier::make({3, 64, -1, "", 1000, stream_bytes_min, 512, round % 2, 1024});
        std::vector<std::thread> threads;
        for (unsigned seed = 0; seed < 4; ++seed)
            threads.emplace_back([&, seed] { use(*copier, 10 * round + seed); });
        if (round % 3 == 0)
            copier->close();
        for (std::thread &thread : threads)
            thread.join();
    }
    std::puts("no race found");
}

#include "copier.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "piece_reader.hpp"

namespace kvferry {
namespace {

constexpr std::size_t THREADS_MAX = 64;
constexpr std::size_t BATCH_PIECES = 128;

// Smaller chunks cost more hand-outs.
constexpr std::uint64_t CHUNK_BYTES_MIN = std::uint64_t{64} << 10;
constexpr std::uint64_t CHUNKS_PER_THREAD = 8;

// Many short runs take longer than their bytes tell.
constexpr std::uint64_t INLINE_RUNS_MAX = 1024;

// A day; no clock overflows.
constexpr std::uint64_t PATIENCE_MS_MAX = std::uint64_t{24} * 3600 * 1000;

const CopierOptions &checked(const CopierOptions &options) {
    if (options.thread_count < 1 || options.thread_count > THREADS_MAX)
        throw std::invalid_argument("thread_count");
    if (options.chunk_bytes_max < 1)
        throw std::invalid_argument("chunk_bytes_max");
    if (options.patience_ms > PATIENCE_MS_MAX)
        throw std::invalid_argument("patience_ms");
    if (options.turn_bytes < 1)
        throw std::invalid_argument("turn_bytes");
    return options;
}

} // namespace

Copier::Copier(const CopierOptions &options)
    : process_(getpid()), kernel_(find_kernel(options.instruction_set)), options_(checked(options)) {
    if (kernel_ == nullptr)
        throw std::invalid_argument("instruction_set");
    if (options.wake_descriptor >= 0) {
        // Its own, so that it stays what it is for as long as threads may write to it.
        wake_descriptor_ = fcntl(options.wake_descriptor, F_DUPFD_CLOEXEC, 0);
        if (wake_descriptor_ < 0)
            throw std::system_error(errno, std::generic_category(), "wake_descriptor");
    }
    try {
        start_threads(options_.thread_count);
    } catch (...) {
        close();
        if (wake_descriptor_ >= 0)
            ::close(wake_descriptor_);
        throw;
    }
}

std::shared_ptr<Copier> Copier::make(const CopierOptions &options) {
    return {new Copier(options), [](Copier *copier) {
                // A fork cannot join threads nor destroy what they wait on: it leaves the copy of its parent's alone.
                if (!copier->is_forked())
                    delete copier;
            }};
}

Copier::~Copier() {
    close();
    if (wake_descriptor_ >= 0)
        ::close(wake_descriptor_);
}

void Copier::start_threads(std::size_t count) {
    // Signals are for the threads of the application.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
        threads_.reserve(count);
        for (std::size_t i = 0; i < count; ++i) {
            threads_.emplace_back([this] { run_thread(); });
            pthread_setname_np(threads_.back().native_handle(), "kvferry-copy");
        }
    } catch (...) {
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        throw;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

bool Copier::is_forked() const { return getpid() != process_; }

void Copier::require_same_process() const {
    if (is_forked())
        throw CopierUnusable("this process is a fork: the copier's threads are in process " + std::to_string(process_));
}

JobPointer Copier::prepared(Plan plan, Window source, Window destination, std::int64_t priority) const {
    auto job = std::make_shared<Job>();
    job->total_bytes = plan.check(source, destination);
    job->plan = std::move(plan);
    job->source = source;
    job->destination = destination;
    job->priority = priority;
    job->streams = job->total_bytes >= options_.stream_bytes_min;
    const std::uint64_t even = job->total_bytes / (options_.thread_count * CHUNKS_PER_THREAD);
    job->chunks = job->plan.chunks(std::min(std::max(even, CHUNK_BYTES_MIN), options_.chunk_bytes_max));
    return job;
}

JobPointer Copier::submit(Plan plan, Window source, Window destination, std::int64_t priority, bool silent) {
    require_same_process();
    const JobPointer job = prepared(std::move(plan), source, destination, priority);
    job->silent = silent;
    const bool is_tiny = job->total_bytes <= options_.inline_bytes_max && job->plan.run_count() <= INLINE_RUNS_MAX;
    const bool here = is_tiny || job->chunks.empty();
    {
        const std::lock_guard lock(mutex_);
        if (closed_)
            throw CopierUnusable("the copier is closed");
        if (under_way_.size() >= options_.jobs_max)
            throw TooManyJobs(std::to_string(options_.jobs_max) + " jobs are under way, as many as may be");
        under_way_.insert(job);
        if (here) {
            job->threads_inside = 1;
            job->next_chunk = job->chunks.size();
        } else {
            waiting_.try_emplace(priority, Level{{}, Clock::now(), 0}).first->second.jobs.push_back(job);
            for (std::size_t i = std::min(idle_threads_, job->chunks.size()); i > 0; --i)
                work_.notify_one();
        }
    }
    if (here) {
        for (const Chunk &chunk : job->chunks)
            execute(*job, chunk);
        const std::lock_guard lock(mutex_);
        leave(*job);
        under_way_.erase(job);
        wake_for(*job);
    }
    return job;
}

void Copier::execute(Job &job, const Chunk &chunk) const {
    PieceReader reader(job.plan, chunk, job.source, job.destination);
    Piece pieces[BATCH_PIECES];
    const auto copy = job.streams ? kernel_->stream : copy_cached;
    std::uint64_t copied = 0;
    while (!job.cancelled.load(std::memory_order_relaxed)) {
        const std::size_t count = reader.read(pieces, BATCH_PIECES);
        if (count == 0)
            break;
        copied += copy(pieces, count, job.cancelled);
    }
    job.copied_bytes.fetch_add(copied, std::memory_order_relaxed);
}

// The highest, unless another is in its turn or has been kept back for too long. Under the lock.
Copier::Levels::iterator Copier::next_level(Clock::time_point now) {
    const auto highest = waiting_.begin();
    highest->second.turn_bytes_left = 0;
    auto eldest = highest;
    for (auto level = std::next(highest); level != waiting_.end(); ++level) {
        if (level->second.turn_bytes_left > 0)
            return level;
        if (eldest == highest || level->second.served_at < eldest->second.served_at)
            eldest = level;
    }
    if (eldest == highest || now - eldest->second.served_at < std::chrono::milliseconds(options_.patience_ms))
        return highest;
    eldest->second.turn_bytes_left = options_.turn_bytes;
    return eldest;
}

Copier::Share Copier::take() {
    const auto now = Clock::now();
    const auto entry = next_level(now);
    Level &level = entry->second;
    JobPointer job = std::move(level.jobs.front());
    level.jobs.pop_front();
    const Chunk chunk = job->chunks[job->next_chunk++];
    ++job->threads_inside;
    level.served_at = now;
    level.turn_bytes_left -= std::min(level.turn_bytes_left, chunk.bytes);
    if (!job->is_handed_out())
        level.jobs.push_back(job);
    else if (level.jobs.empty())
        waiting_.erase(entry);
    return {std::move(job), chunk};
}

void Copier::run_thread() {
    std::unique_lock lock(mutex_);
    for (;;) {
        ++idle_threads_;
        work_.wait(lock, [this] { return closed_ || !waiting_.empty(); });
        --idle_threads_;
        if (waiting_.empty())
            return;
        const Share share = take();
        lock.unlock();
        execute(*share.job, share.chunk);
        lock.lock();
        if (leave(*share.job)) {
            under_way_.erase(share.job);
            // Under the lock: close() has then seen either the job or its end.
            wake_for(*share.job);
        }
    }
}

// Whether the calling thread was the last: the job is done then.
bool Copier::leave(Job &job) {
    if (--job.threads_inside > 0 || !job.is_handed_out())
        return false;
    job.done.store(true, std::memory_order_release);
    ended_.notify_all();
    return true;
}

void Copier::wake_for(const Job &job) const {
    if (wake_descriptor_ < 0 || job.silent)
        return;
    const std::uint64_t one = 1;
    // It fails only if the counter is full, and then its reader is woken anyway.
    [[maybe_unused]] const ssize_t written = write(wake_descriptor_, &one, sizeof one);
}

// Hand out no more of the job. Under the lock.
void Copier::withdraw(const JobPointer &job) {
    job->cancelled.store(true, std::memory_order_relaxed);
    if (job->is_handed_out())
        return;
    job->next_chunk = job->chunks.size();
    const auto entry = waiting_.find(job->priority);
    auto &jobs = entry->second.jobs;
    jobs.erase(std::find(jobs.begin(), jobs.end(), job));
    if (jobs.empty())
        waiting_.erase(entry);
    if (job->threads_inside == 0) {
        job->done.store(true, std::memory_order_release);
        ended_.notify_all();
        under_way_.erase(job);
        wake_for(*job);
    }
}

void Copier::cancel(const JobPointer &job) {
    if (is_forked() || job->done.load(std::memory_order_acquire))
        return;
    // Threads inside see it at once, also while the lock is not to be had.
    job->cancelled.store(true, std::memory_order_relaxed);
    const std::lock_guard lock(mutex_);
    withdraw(job);
}

bool Copier::wait(const JobPointer &job, double timeout_s) {
    if (job->done.load(std::memory_order_acquire))
        return true;
    require_same_process();
    std::unique_lock lock(mutex_);
    const auto is_done = [&] { return job->done.load(std::memory_order_acquire); };
    if (timeout_s < 0) {
        ended_.wait(lock, is_done);
        return true;
    }
    // A day is longer than any job, and no clock overflows.
    const std::chrono::duration<double> timeout(std::min(timeout_s, 86400.0));
    return ended_.wait_for(lock, timeout, is_done);
}

void Copier::close() {
    // In a fork the threads are not there, nor is whoever held the mutex.
    if (is_forked())
        return;
    std::vector<std::thread> threads;
    {
        std::unique_lock lock(mutex_);
        closed_ = true;
        const std::vector<JobPointer> jobs(under_way_.begin(), under_way_.end());
        for (const JobPointer &job : jobs)
            withdraw(job);
        ended_.wait(lock, [this] { return under_way_.empty(); });
        threads.swap(threads_);
        work_.notify_all();
    }
    for (std::thread &thread : threads)
        thread.join();
}

} // namespace kvferry

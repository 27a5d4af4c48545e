// A bounded pool of threads that execute jobs: by priority, those of one priority in turns. A priority of which nothing
// was handed out for as long as the patience gets a turn of so many bytes ahead of all others, then waits again: what
// comes with a low priority waits, but not for as long as higher ones keep the threads busy.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>

#include "job.hpp"
#include "kernels.hpp"

namespace kvferry {

// As many jobs as may be are under way.
struct TooManyJobs : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The copier was closed, or this process is a fork of the one that its threads live in.
struct CopierUnusable : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct CopierOptions {
    std::size_t thread_count;
    std::size_t jobs_max;
    int wake_descriptor; // an eventfd that gets 1 at the end of each job; -1 for none
    std::string instruction_set;
    std::uint64_t inline_bytes_max; // jobs of so few bytes, in few runs, are done by submit()
    std::uint64_t stream_bytes_min; // jobs of so many bytes go past the caches
    std::uint64_t chunk_bytes_max;  // as much is handed to a thread at once
    std::uint64_t patience_ms;      // a priority that is kept back for so long gets a turn
    std::uint64_t turn_bytes;       // as much is handed out in such a turn, or a chunk more
};

class Copier {
  public:
    // Throws std::system_error if the descriptor or a thread cannot be had, std::invalid_argument for bad options.
    static std::shared_ptr<Copier> make(const CopierOptions &options);
    ~Copier();
    Copier(const Copier &) = delete;
    Copier &operator=(const Copier &) = delete;

    // Throws PlanError, TooManyJobs, CopierUnusable. A tiny job is done on return.
    // The end of a silent job is not written to the descriptor.
    JobPointer submit(Plan plan, Window source, Window destination, std::int64_t priority, bool silent);
    void cancel(const JobPointer &job);
    // Whether the job was done within the time; waits for ever if it is negative.
    bool wait(const JobPointer &job, double timeout_s);
    // Cancels what is under way and waits for its end. In a fork it does nothing.
    void close();

    const char *instruction_set() const { return kernel_->name; }

  private:
    struct Share {
        JobPointer job;
        Chunk chunk;
    };

    using Clock = std::chrono::steady_clock;

    // Jobs of one priority that have something to hand out.
    struct Level {
        std::deque<JobPointer> jobs;
        Clock::time_point served_at; // when something was handed out last; when the first came, before that
        std::uint64_t turn_bytes_left = 0;
    };
    using Levels = std::map<std::int64_t, Level, std::greater<>>;

    explicit Copier(const CopierOptions &options);
    JobPointer prepared(Plan plan, Window source, Window destination, std::int64_t priority) const;
    void start_threads(std::size_t count);
    void run_thread();
    Share take();
    Levels::iterator next_level(Clock::time_point now);
    void execute(Job &job, const Chunk &chunk) const;
    bool leave(Job &job);
    void withdraw(const JobPointer &job);
    void wake_for(const Job &job) const;
    bool is_forked() const;
    void require_same_process() const;

    const pid_t process_;
    const Kernel *kernel_;
    const CopierOptions options_;
    int wake_descriptor_ = -1;

    std::mutex mutex_;
    std::condition_variable work_;
    std::condition_variable ended_;
    Levels waiting_;
    std::set<JobPointer> under_way_;
    std::size_t idle_threads_ = 0;
    bool closed_ = false;
    std::vector<std::thread> threads_;
};

} // namespace kvferry

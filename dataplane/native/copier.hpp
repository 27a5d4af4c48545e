// A bounded pool of threads that execute jobs: by priority, those of one priority in turns.
#pragma once

#include <sys/types.h>

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
};

class Copier {
  public:
    // Throws std::system_error if the descriptor or a thread cannot be had, std::invalid_argument for bad options.
    static std::shared_ptr<Copier> make(const CopierOptions &options);
    ~Copier();
    Copier(const Copier &) = delete;
    Copier &operator=(const Copier &) = delete;

    // Throws PlanError, TooManyJobs, CopierUnusable. A tiny job is done on return.
    JobPointer submit(Plan plan, Window source, Window destination, std::int64_t priority);
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

    explicit Copier(const CopierOptions &options);
    JobPointer prepared(Plan plan, Window source, Window destination, std::int64_t priority) const;
    void start_threads(std::size_t count);
    void run_thread();
    Share take();
    void execute(Job &job, const Chunk &chunk) const;
    bool leave(Job &job);
    void withdraw(const JobPointer &job);
    void wake() const;
    bool is_forked() const;
    void require_same_process() const;

    const pid_t process_;
    const Kernel *kernel_;
    const std::size_t jobs_max_;
    const std::size_t thread_count_;
    int wake_descriptor_ = -1;

    std::mutex mutex_;
    std::condition_variable work_;
    std::condition_variable ended_;
    std::map<std::int64_t, std::deque<JobPointer>, std::greater<>> waiting_;
    std::set<JobPointer> under_way_;
    std::size_t idle_threads_ = 0;
    bool closed_ = false;
    std::vector<std::thread> threads_;
};

} // namespace kvferry

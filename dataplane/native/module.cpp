// The Python side of the copy core. Nothing but arrays, numbers and typed errors cross here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "bind_digest.hpp"
#include "bind_stream.hpp"
#include "ceiling.hpp"
#include "copier.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Array = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using AxisTuple = std::tuple<std::int64_t, std::int64_t, std::int64_t>;
using WindowTuple = std::tuple<std::size_t, std::size_t>;

kvferry::Offsets copied(const Array &array) { return {array.data(), array.data() + array.shape(0)}; }

kvferry::Window window(const WindowTuple &tuple) { return {std::get<0>(tuple), std::get<1>(tuple)}; }

kvferry::Runs runs(const Array &sources, const Array &destinations, const Array &lengths) {
    return {copied(sources), copied(destinations), copied(lengths)};
}

kvferry::Region region(const Array &sources, const Array &destinations, const std::vector<AxisTuple> &axes,
                       std::int64_t run_bytes) {
    kvferry::Region made{copied(sources), copied(destinations), {}, run_bytes};
    for (const auto &[length, source_stride, destination_stride] : axes)
        made.axes.push_back({length, source_stride, destination_stride});
    return made;
}

// A job together with the copier that it needs to be cancelled.
struct JobHandle {
    std::shared_ptr<kvferry::Copier> copier;
    kvferry::JobPointer job;
};

PyObject *plan_error = nullptr;
PyObject *too_many_jobs = nullptr;
PyObject *copier_unusable = nullptr;

PyObject *make_error(nb::module_ &module, const char *name) {
    const std::string path = std::string(nb::cast<std::string>(module.attr("__name__"))) + "." + name;
    PyObject *made = PyErr_NewException(path.c_str(), PyExc_Exception, nullptr);
    if (made == nullptr)
        nb::raise_python_error();
    module.attr(name) = nb::handle(made);
    return made;
}

void translate(const std::exception_ptr &error, void *) {
    try {
        std::rethrow_exception(error);
    } catch (const kvferry::PlanError &refused) {
        const nb::tuple arguments = nb::make_tuple(refused.field, refused.value, refused.what());
        PyErr_SetObject(plan_error, arguments.ptr());
    } catch (const kvferry::TooManyJobs &refused) {
        PyErr_SetString(too_many_jobs, refused.what());
    } catch (const kvferry::CopierUnusable &refused) {
        PyErr_SetString(copier_unusable, refused.what());
    } catch (const std::system_error &failed) {
        PyErr_SetString(PyExc_OSError, failed.what());
    }
}

double timed_copy(kvferry::CeilingStyle style, const WindowTuple &source, const WindowTuple &destination,
                  const kvferry::Runs &pieces, std::size_t thread_count) {
    const nb::gil_scoped_release released;
    return kvferry::ceiling_copy(pieces, window(source), window(destination), thread_count, style);
}

void bind_plan(nb::module_ &module) {
    nb::class_<kvferry::Plan>(module, "Plan")
        .def(nb::init<>())
        .def(
            "add_runs",
            [](kvferry::Plan &plan, const Array &sources, const Array &destinations, const Array &lengths) {
                plan.add(runs(sources, destinations, lengths));
            },
            "source_offsets"_a, "destination_offsets"_a, "lengths"_a)
        .def(
            "add_region",
            [](kvferry::Plan &plan, const Array &sources, const Array &destinations, const std::vector<AxisTuple> &axes,
               std::int64_t run_bytes) { plan.add(region(sources, destinations, axes, run_bytes)); },
            "source_bases"_a, "destination_bases"_a, "axes"_a, "run_bytes"_a);
}

void bind_job(nb::module_ &module) {
    nb::class_<JobHandle>(module, "Job")
        .def_prop_ro("done", [](const JobHandle &self) { return self.job->done.load(std::memory_order_acquire); })
        .def_prop_ro("copied_bytes",
                     [](const JobHandle &self) { return self.job->copied_bytes.load(std::memory_order_relaxed); })
        .def(
            "cancel", [](const JobHandle &self) { self.copier->cancel(self.job); },
            nb::call_guard<nb::gil_scoped_release>())
        .def(
            "wait", [](const JobHandle &self, double timeout_s) { return self.copier->wait(self.job, timeout_s); },
            "timeout_s"_a, nb::call_guard<nb::gil_scoped_release>());
}

void bind_copier(nb::module_ &module) {
    using kvferry::Copier;
    nb::class_<Copier>(module, "Copier")
        .def(nb::new_([](std::size_t thread_count, std::size_t jobs_max, int wake_descriptor, std::string instruction_set,
                         std::uint64_t inline_bytes_max, std::uint64_t stream_bytes_min, std::uint64_t chunk_bytes_max,
                         std::uint64_t patience_ms, std::uint64_t turn_bytes) {
                 return Copier::make({thread_count, jobs_max, wake_descriptor, std::move(instruction_set),
                                      inline_bytes_max, stream_bytes_min, chunk_bytes_max, patience_ms, turn_bytes});
             }),
             nb::kw_only(), "thread_count"_a, "jobs_max"_a, "wake_descriptor"_a, "instruction_set"_a,
             "inline_bytes_max"_a, "stream_bytes_min"_a, "chunk_bytes_max"_a, "patience_ms"_a, "turn_bytes"_a)
        .def(
            "submit",
            [](std::shared_ptr<Copier> self, kvferry::Plan &plan, const WindowTuple &source,
               const WindowTuple &destination, std::int64_t priority, bool silent) {
                const nb::gil_scoped_release released;
                auto job = self->submit(std::move(plan), window(source), window(destination), priority, silent);
                return JobHandle{std::move(self), std::move(job)};
            },
            "plan"_a, "source"_a, "destination"_a, "priority"_a, "silent"_a)
        .def("close", &Copier::close, nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("instruction_set", &Copier::instruction_set);
}

} // namespace

NB_MODULE(_core, module) {
    // Jobs and copiers may be alive when the interpreter ends; their threads never touch it.
    nb::set_leak_warnings(false);
    plan_error = make_error(module, "PlanError");
    too_many_jobs = make_error(module, "TooManyJobs");
    copier_unusable = make_error(module, "CopierUnusable");
    nb::register_exception_translator(translate);
    bind_plan(module);
    bind_job(module);
    bind_copier(module);
    kvferry::bind_stream(module);
    kvferry::bind_digest(module);
    module.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (const kvferry::Kernel &kernel : kvferry::kernels())
            names.emplace_back(kernel.name);
        return names;
    });
    for (const auto &[name, style] : {std::pair{"ceiling_copy", kvferry::CeilingStyle::NON_TEMPORAL},
                                      std::pair{"plain_copy", kvferry::CeilingStyle::MEMCPY}})
        module.def(
            name,
            [style = style](const WindowTuple &source, const WindowTuple &destination, const Array &sources,
                            const Array &destinations, const Array &lengths, std::size_t thread_count) {
                return timed_copy(style, source, destination, runs(sources, destinations, lengths), thread_count);
            },
            "source"_a, "destination"_a, "source_offsets"_a, "destination_offsets"_a, "lengths"_a, "thread_count"_a);
}

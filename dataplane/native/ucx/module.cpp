// The Python side of direct UCX. Nothing but arrays, numbers, bytes and typed errors cross here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <utility>

#include "agent.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace kvferry::ucp;
using kvferry::Offsets;
using kvferry::PlanError;

namespace {

using Array = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using RegionTuple = std::tuple<std::uint64_t, std::uint64_t, nb::bytes>;
using LibraryPointer = std::shared_ptr<const Library>;

PyObject *plan_error = nullptr;
PyObject *failure = nullptr;
PyObject *library_unusable = nullptr;
PyObject *agent_unusable = nullptr;

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
    } catch (const PlanError &refused) {
        PyErr_SetObject(plan_error, nb::make_tuple(refused.field, refused.value, refused.what()).ptr());
    } catch (const Failure &refused) {
        PyErr_SetObject(failure, nb::make_tuple(static_cast<int>(refused.status), refused.what()).ptr());
    } catch (const LibraryUnusable &refused) {
        PyErr_SetString(library_unusable, refused.what());
    } catch (const AgentUnusable &refused) {
        PyErr_SetString(agent_unusable, refused.what());
    }
}

Offsets copied(const Array &array) { return {array.data(), array.data() + array.shape(0)}; }

std::string content(const nb::bytes &bytes) { return {bytes.c_str(), bytes.size()}; }

nb::bytes told(const std::string &content) { return nb::bytes(content.data(), content.size()); }

nb::bytes address(Agent &agent) {
    std::string packed;
    {
        const nb::gil_scoped_release released;
        packed = agent.address();
    }
    return told(packed);
}

nb::bytes region_key(Agent &agent, std::uint32_t region) {
    std::string packed;
    {
        const nb::gil_scoped_release released;
        packed = agent.region_key(region);
    }
    return told(packed);
}

std::uint64_t connect_peer(Agent &agent, const nb::bytes &address_bytes, const std::vector<RegionTuple> &regions,
                      bool sees_failures) {
    const std::string address = content(address_bytes);
    std::vector<RemoteRegion> described;
    for (const auto &[start, size, key] : regions)
        described.push_back({start, size, content(key)});
    const nb::gil_scoped_release released;
    return agent.connect(address, described, sees_failures);
}

std::uint64_t start_read(Agent &agent, std::uint64_t peer, std::uint32_t remote, std::uint32_t local, const Array &sources,
                   const Array &destinations, const Array &lengths) {
    kvferry::Runs runs{copied(sources), copied(destinations), copied(lengths)};
    const nb::gil_scoped_release released;
    return agent.read(peer, remote, local, std::move(runs));
}

std::tuple<bool, int, std::uint64_t> poll_batch(Agent &agent, std::uint64_t batch) {
    const nb::gil_scoped_release released;
    const Progress seen = agent.poll(batch);
    return {seen.done, static_cast<int>(seen.status), seen.bytes};
}

} // namespace

NB_MODULE(_ucx, module) {
    // Agents may be alive when the interpreter ends; nothing of them runs by itself.
    nb::set_leak_warnings(false);
    plan_error = make_error(module, "PlanError");
    failure = make_error(module, "Failure");
    library_unusable = make_error(module, "LibraryUnusable");
    agent_unusable = make_error(module, "AgentUnusable");
    nb::register_exception_translator(translate);
    const auto released = nb::call_guard<nb::gil_scoped_release>();
    nb::class_<Library>(module, "Library")
        .def_static("open", &Library::open, "file"_a, released)
        .def_prop_ro("version", [](const Library &self) { return self.version; })
        .def(
            "text", [](const Library &self, int status) { return self.text(static_cast<Status>(status)); }, "status"_a);
    nb::class_<Agent>(module, "Agent")
        .def(nb::new_([](LibraryPointer library, std::uint32_t gets_max, std::uint64_t bytes_max,
                         std::uint64_t chunk_bytes_max, std::uint32_t step_gets_max, std::uint64_t step_bytes_max,
                         std::uint32_t polls) {
                 const Limits limits{gets_max, bytes_max, chunk_bytes_max, step_gets_max, step_bytes_max, polls};
                 const nb::gil_scoped_release released;
                 return std::make_shared<Agent>(std::move(library), limits);
             }),
             "library"_a, nb::kw_only(), "gets_max"_a, "bytes_max"_a, "chunk_bytes_max"_a, "step_gets_max"_a,
             "step_bytes_max"_a, "polls"_a)
        .def("supports", &Agent::supports, "memory_type"_a)
        .def(
            "add_region",
            [](Agent &self, std::size_t start, std::size_t size, int memory_type) {
                return self.add_region({start, size}, memory_type);
            },
            "address"_a, "size_bytes"_a, "memory_type"_a, released)
        .def("region_key", &region_key, "region"_a)
        .def("address", &address)
        .def("connect", &connect_peer, "address"_a, "regions"_a, "sees_failures"_a)
        .def("disconnect", &Agent::disconnect, "peer"_a, released)
        .def("read", &start_read, "peer"_a, "remote"_a, "local"_a, "source_offsets"_a, "destination_offsets"_a, "lengths"_a)
        .def("cancel", &Agent::cancel, "batch"_a, released)
        .def("poll", &poll_batch, "batch"_a)
        .def("progress", &Agent::progress, released)
        .def("gets_in_flight", &Agent::gets_in_flight, released)
        .def("close", &Agent::close, released);
}

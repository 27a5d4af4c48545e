// The Python side of the digest.
#include "bind_digest.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "bind_stream.hpp"
#include "digest.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvferry {

namespace {

template <typename Number> using List = nb::ndarray<const Number, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Sums = nb::ndarray<std::uint64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using WindowTuple = std::tuple<std::size_t, std::size_t>;
// Token stride, dim stride, elements of a run, bytes of an element.
using Shape = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

// A copy: what was checked is what is used, whatever Python does to its own meanwhile.
template <typename Number> std::vector<Number> copied(const List<Number> &array) {
    return {array.data(), array.data() + array.shape(0)};
}

bool add_digest(const WindowTuple &window, const List<std::int64_t> &bases, const List<std::int64_t> &tokens,
                const List<std::int64_t> &counts, const List<std::int64_t> &rows,
                const List<std::int64_t> &cell_offsets, const List<std::uint64_t> &cell_keys, std::int64_t inner,
                const Shape &shape, const List<std::uint32_t> &word_keys, const Sums &sums, std::size_t thread_count,
                const FlagHandle *flag, const std::string &instruction_set) {
    const auto [token_stride, dim_stride, run_elements, element_bytes] = shape;
    const DigestRegion region{copied(bases),
                              copied(tokens),
                              copied(counts),
                              copied(rows),
                              copied(cell_offsets),
                              copied(cell_keys),
                              inner,
                              token_stride,
                              dim_stride,
                              run_elements,
                              element_bytes,
                              static_cast<std::int64_t>(sums.shape(0))};
    WordKeys keys;
    if (word_keys.shape(0) != keys.size() || sums.shape(1) != region.cell_count())
        throw nb::value_error("word_keys or sums have another shape");
    std::copy_n(word_keys.data(), keys.size(), keys.begin());
    const Window memory{std::get<0>(window), std::get<1>(window)};
    std::uint64_t *into = sums.data();
    const nb::gil_scoped_release released;
    return digest(region, memory, keys, into,
                  {thread_count, flag == nullptr ? nullptr : &flag->raised, instruction_set});
}

} // namespace

void bind_digest(nb::module_ &module) {
    module.def("add_digest", &add_digest, "window"_a, "bases"_a, "tokens"_a, "counts"_a, "rows"_a, "cell_offsets"_a,
               "cell_keys"_a, "inner"_a, "shape"_a, "word_keys"_a, "sums"_a, "thread_count"_a, "flag"_a = nb::none(),
               "instruction_set"_a = "");
    module.def("digest_instruction_sets", &digest_instruction_sets);
}

} // namespace kvferry

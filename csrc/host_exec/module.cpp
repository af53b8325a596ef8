// SPDX-License-Identifier: Apache-2.0
// The Python module _host_exec, for tests: settings of the simulated GPU and self-tests. The same library registers
// every op that has CUDA kernels under torch.ops.dit_fast_host_exec, on CPU tensors; import torch first.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "host_exec/probes.h"
#include "host_exec/selftest.h"
#include "host_exec/settings.h"

namespace py = pybind11;

namespace host_exec {
namespace {

using Array = py::array_t<float, py::array::c_style>;

constexpr std::pair<Order, const char*> kOrders[] = {
    {Order::ascending, "ascending"}, {Order::descending, "descending"}, {Order::random, "random"}};

void set_order(const std::string& wanted, uint64_t seed) {
  for (auto [order, name] : kOrders)
    if (wanted == name) {
      settings.order = order;
      settings.seed = seed;
      return;
    }
  throw py::value_error("order: expected ascending, descending or random, got " + wanted);
}

std::string order() {
  for (auto [order, name] : kOrders)
    if (order == settings.order) return name;
  return "";
}

selftest::Bug find_bug(const std::string& wanted) {
  for (auto [bug, name] : selftest::kBugs)
    if (wanted == name) return bug;
  throw py::value_error("bug: expected one of bugs(), got " + wanted);
}

std::vector<std::string> bugs() {
  std::vector<std::string> names;
  for (auto [bug, name] : selftest::kBugs) names.emplace_back(name);
  return names;
}

Array to_array(const std::vector<float>& values, std::vector<py::ssize_t> shape) {
  Array out(shape);
  std::copy(values.begin(), values.end(), out.mutable_data());
  return out;
}

Array row_sums(const Array& x, const std::string& bug) {
  return to_array(selftest::row_sums(find_bug(bug), x.data(), x.shape(0), x.shape(1)), {x.shape(0)});
}

Array gemm(const Array& a, const Array& b, const std::string& bug) {
  return to_array(selftest::gemm(find_bug(bug), a.data(), b.data(), a.shape(0), b.shape(0), a.shape(1)),
                  {a.shape(0), b.shape(0)});
}

std::vector<std::string> probes() {
  std::vector<std::string> names;
  for (int i = 0; dit_probe_name(i); ++i) names.emplace_back(dit_probe_name(i));
  return names;
}

std::pair<size_t, size_t> probe_sizes(const std::string& name) {
  size_t in = 0, out = 0;
  if (!dit_probe_sizes(name.c_str(), &in, &out)) throw py::value_error("name: expected one of probes(), got " + name);
  return {in, out};
}

py::bytes probe(const std::string& name, const std::string& in) {
  const auto [in_bytes, out_bytes] = probe_sizes(name);
  if (in.size() != in_bytes)
    throw py::value_error("input: expected " + std::to_string(in_bytes) + " bytes, got " + std::to_string(in.size()));
  struct alignas(16) Sixteen {
    char bytes[16];
  };
  std::vector<Sixteen> input((in_bytes + 15) / 16), output((out_bytes + 15) / 16);
  std::memcpy(input.data(), in.data(), in_bytes);
  if (dit_probe(name.c_str(), input.data(), output.data(), nullptr) != cudaSuccess)
    throw std::runtime_error(last_message());
  return py::bytes(reinterpret_cast<const char*>(output.data()), out_bytes);
}

}  // namespace
}  // namespace host_exec

PYBIND11_MODULE(_host_exec, m) {
  using namespace host_exec;
  m.def("set_order", &set_order, py::arg("order"), py::arg("seed") = 0);
  m.def("order", &order);
  m.def("set_compute_capability", [](int value) { settings.compute_capability = value; });
  m.def("last_block", &last_block);
  m.def("set_multiprocessors", [](int value) { settings.multiprocessors = value; });
  m.def("sanitizer", &sanitizer);
  m.def("bugs", &bugs);
  m.def("row_sums", &row_sums, py::arg("x"), py::arg("bug") = "none");
  m.def("probes", &probes);
  m.def("probe_sizes", &probe_sizes, "the bytes it reads and writes", py::arg("name"));
  m.def("probe", &probe, py::arg("name"), py::arg("input"));
  m.def("gemm", &gemm, py::arg("a"), py::arg("b"), py::arg("bug") = "none");
}

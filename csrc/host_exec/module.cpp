// SPDX-License-Identifier: Apache-2.0
// The Python module _host_exec, for tests: settings of the simulated GPU and self-tests. The same library registers
// every op that has CUDA kernels under torch.ops.dit_fast_host_exec, on CPU tensors; import torch first.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "host_exec/sanitizers.h"
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

Array row_sums(const Array& x) {
  Array out(x.shape(0));
  selftest::row_sums(x.data(), out.mutable_data(), x.shape(0), x.shape(1));
  return out;
}

}  // namespace
}  // namespace host_exec

PYBIND11_MODULE(_host_exec, m) {
  using namespace host_exec;
  m.def("set_order", &set_order, py::arg("order"), py::arg("seed") = 0);
  m.def("order", &order);
  m.def("set_compute_capability", [](int value) { settings.compute_capability = value; });
  m.def("sanitizer", &sanitizers::name);
  m.def("row_sums", &row_sums);
}

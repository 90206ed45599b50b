// Two-dimensional convolutions of float32 by oneDNN, as handlers of XLA's foreign function interface.
//
// Maps are [b, h, w, c] and kernels [h, w, in, out], as JAX keeps them; oneDNN chooses the order of the kernel that its
// code runs on, and the handlers convert. A call allocates nothing after the first of its shape: primitives are kept for
// the life of the process, and each thread keeps its scratch memory.

#include <omp.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <string>
#include <unordered_map>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using dnnl::memory;
using Map = ffi::BufferR4<ffi::F32>;
using Integers = ffi::Span<const int64_t>;

enum Direction : int64_t { kForward, kInputGradient, kKernelGradient };

// Direction; sizes of input, kernel and output; strides; padding before and after each axis; threads.
using Key = std::array<int64_t, 20>;

// Everything about a convolution of given shapes that does not depend on its data.
struct Plan {
  dnnl::primitive convolution, reorder;  // the second converts the kernel or its gradient
  memory::desc input, output, kernel, inner_kernel, scratchpad;
  bool reorders;
};

// These objects are never destroyed: at the end of a process, other threads may still compute.
dnnl::engine& Engine() {
  static auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

// Sets the number of OpenMP threads for a call. The number belongs to the calling thread, which other libraries use too.
class Threads {
 public:
  explicit Threads(int64_t count) : before_(omp_get_max_threads()) { omp_set_num_threads(static_cast<int>(count)); }
  ~Threads() { omp_set_num_threads(before_); }

 private:
  int before_;
};

// Memory of the calling thread that only grows, at the alignment of a cache line.
char* Scratch(size_t size) {
  struct Free {
    void operator()(char* block) const { std::free(block); }
  };
  thread_local std::unique_ptr<char, Free> block;
  thread_local size_t capacity = 0;
  if (size > capacity) {
    block.reset(static_cast<char*>(std::aligned_alloc(64, size)));
    capacity = block ? size : 0;
    if (!block) throw std::bad_alloc();
  }
  return block.get();
}

size_t RoundUp(size_t size) { return (size + 63) / 64 * 64; }

Key MakeKey(Direction direction, Integers input, Integers kernel, Integers output, Integers strides, Integers padding,
            int64_t threads) {
  return {direction,  input[0],   input[1],   input[2],   input[3],  kernel[0],  kernel[1],  kernel[2],  kernel[3],
          output[0],  output[1],  output[2],  output[3],  strides[0], strides[1], padding[0], padding[1], padding[2],
          padding[3], threads};
}

Plan MakePlan(const Key& key) {
  const auto [direction, b, h, w, i, kh, kw, ki, ko, ob, oh, ow, o, sh, sw, top, bottom, left, right, threads] = key;
  const memory::dims strides{sh, sw}, before{top, left}, after{bottom, right};
  const auto type = memory::data_type::f32;
  const auto algorithm = dnnl::algorithm::convolution_direct;
  Plan plan;
  plan.input = memory::desc({b, i, h, w}, type, memory::format_tag::nhwc);
  plan.output = memory::desc({ob, o, oh, ow}, type, memory::format_tag::nhwc);
  plan.kernel = memory::desc({ko, ki, kh, kw}, type, memory::format_tag::hwio);
  const auto any = memory::desc({ko, ki, kh, kw}, type, memory::format_tag::any);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const dnnl::convolution_forward::primitive_desc forward(Engine(), dnnl::prop_kind::forward_training, algorithm,
                                                          plan.input, any, plan.output, strides, before, after,
                                                          attributes);
  if (direction == kForward) {
    plan.convolution = dnnl::convolution_forward(forward);
    plan.inner_kernel = forward.weights_desc();
    plan.scratchpad = forward.scratchpad_desc();
  } else if (direction == kInputGradient) {
    const dnnl::convolution_backward_data::primitive_desc backward(
        Engine(), algorithm, plan.input, any, plan.output, strides, before, after, forward, attributes);
    plan.convolution = dnnl::convolution_backward_data(backward);
    plan.inner_kernel = backward.weights_desc();
    plan.scratchpad = backward.scratchpad_desc();
  } else {
    const dnnl::convolution_backward_weights::primitive_desc backward(
        Engine(), algorithm, plan.input, any, plan.output, strides, before, after, forward, attributes);
    plan.convolution = dnnl::convolution_backward_weights(backward);
    plan.inner_kernel = backward.diff_weights_desc();
    plan.scratchpad = backward.scratchpad_desc();
  }
  plan.reorders = plan.inner_kernel != plan.kernel;
  if (plan.reorders) {
    const auto& from = direction == kKernelGradient ? plan.inner_kernel : plan.kernel;
    const auto& to = direction == kKernelGradient ? plan.kernel : plan.inner_kernel;
    plan.reorder = dnnl::reorder(dnnl::reorder::primitive_desc(Engine(), from, Engine(), to));
  }
  return plan;
}

// The plan of a key, made by the first call with it.
const Plan& FindPlan(const Key& key) {
  static auto* mutex = new std::shared_mutex;
  static auto* plans = new std::map<Key, Plan>;  // references to its values stay valid
  {
    std::shared_lock lock(*mutex);
    const auto entry = plans->find(key);
    if (entry != plans->end()) return entry->second;
  }
  std::unique_lock lock(*mutex);
  const auto entry = plans->find(key);
  if (entry != plans->end()) return entry->second;
  return plans->emplace(key, MakePlan(key)).first->second;
}

void Execute(const Key& key, void* input, void* kernel, void* output) {
  const auto direction = static_cast<Direction>(key.front());
  const Threads threads(key.back());
  const Plan& plan = FindPlan(key);
  thread_local dnnl::stream stream(Engine());
  const size_t kernel_size = plan.reorders ? RoundUp(plan.inner_kernel.get_size()) : 0;
  char* scratch = Scratch(kernel_size + RoundUp(plan.scratchpad.get_size()));
  memory given(plan.kernel, Engine(), kernel);
  memory inner = plan.reorders ? memory(plan.inner_kernel, Engine(), scratch) : given;
  memory x(plan.input, Engine(), input), y(plan.output, Engine(), output);
  memory scratchpad(plan.scratchpad, Engine(), scratch + kernel_size);
  const bool kernel_is_read = direction != kKernelGradient;
  if (plan.reorders && kernel_is_read) plan.reorder.execute(stream, {{DNNL_ARG_FROM, given}, {DNNL_ARG_TO, inner}});
  plan.convolution.execute(stream, {{direction == kInputGradient ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, x},
                                    {kernel_is_read ? DNNL_ARG_WEIGHTS : DNNL_ARG_DIFF_WEIGHTS, inner},
                                    {direction == kForward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, y},
                                    {DNNL_ARG_SCRATCHPAD, scratchpad}});
  if (plan.reorders && !kernel_is_read) plan.reorder.execute(stream, {{DNNL_ARG_FROM, inner}, {DNNL_ARG_TO, given}});
  stream.wait();
}

ffi::Error Run(Direction direction, Map input, Map kernel, Map output, Integers strides, Integers padding,
               int64_t threads) {
  try {
    Execute(MakeKey(direction, input.dimensions(), kernel.dimensions(), output.dimensions(), strides, padding, threads),
            input.untyped_data(), kernel.untyped_data(), output.untyped_data());
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, std::string("oneDNN convolution: ") + error.what());
  }
}

ffi::Error Forward(Integers strides, Integers padding, int64_t threads, Map x, Map kernel, ffi::Result<Map> y) {
  return Run(kForward, x, kernel, *y, strides, padding, threads);
}

ffi::Error InputGradient(Integers strides, Integers padding, int64_t threads, Map gradient, Map kernel,
                         ffi::Result<Map> x) {
  return Run(kInputGradient, *x, kernel, gradient, strides, padding, threads);
}

ffi::Error KernelGradient(Integers strides, Integers padding, int64_t threads, Map x, Map gradient,
                          ffi::Result<Map> kernel) {
  return Run(kKernelGradient, x, *kernel, gradient, strides, padding, threads);
}

auto Binding() {
  return ffi::Ffi::Bind()
      .Attr<Integers>("strides")
      .Attr<Integers>("padding")
      .Attr<int64_t>("threads")
      .Arg<Map>()
      .Arg<Map>()
      .Ret<Map>();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(forward, Forward, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(input_gradient, InputGradient, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(kernel_gradient, KernelGradient, Binding());

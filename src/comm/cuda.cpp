// What libtorch can do on CUDA and tch has no word for: capturing work as a CUDA graph, and the precision of float32
// arithmetic. A library of its own, opened at run time by cuda.rs after libtorch_cuda, whose symbols it needs; the program
// itself never needs CUDA.
//
// Every function returns whether it worked; dft_cuda_error() then says what did not.

#include <ATen/Context.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <exception>
#include <optional>
#include <string>

namespace {

std::string last_error;

template <typename Work> bool tried(Work work) {
    try {
        work();
        return true;
    } catch (const c10::Error& error) {
        last_error = error.what_without_backtrace();
    } catch (const std::exception& error) {
        last_error = error.what();
    } catch (...) {
        last_error = "an exception without words";
    }
    return false;
}

// Work on `after` begins when what `before` was given until now is done.
void order(const c10::cuda::CUDAStream& before, const c10::cuda::CUDAStream& after) {
    c10::cuda::CUDAEvent event;
    event.record(before);
    event.block(after);
}

// A graph and the stream that its work is given to: the default stream cannot be captured.
struct Captured {
    explicit Captured(c10::DeviceIndex device) : side(c10::cuda::getStreamFromPool(false, device)) {}

    at::cuda::CUDAGraph graph;
    c10::cuda::CUDAStream side;
    std::optional<c10::cuda::CUDAStreamGuard> on_side;
};

} // namespace

extern "C" {

const char* dft_cuda_error() { return last_error.c_str(); }

bool dft_cuda_allow_tf32(bool allowed) {
    return tried([&] {
        at::globalContext().setAllowTF32CuDNN(allowed);
        at::globalContext().setAllowTF32CuBLAS(allowed);
    });
}

void* dft_cuda_graph_new(int device) {
    void* made = nullptr;
    tried([&] { made = new Captured(static_cast<c10::DeviceIndex>(device)); });
    return made;
}

void dft_cuda_graph_free(void* graph) { delete static_cast<Captured*>(graph); }

// From here to dft_cuda_graph_leave, work of this thread goes to the graph's own stream.
bool dft_cuda_graph_enter(void* graph) {
    auto& it = *static_cast<Captured*>(graph);
    return tried([&] {
        order(c10::cuda::getCurrentCUDAStream(it.side.device_index()), it.side);
        it.on_side.emplace(it.side);
    });
}

bool dft_cuda_graph_leave(void* graph) {
    auto& it = *static_cast<Captured*>(graph);
    return tried([&] {
        it.on_side.reset();
        order(it.side, c10::cuda::getCurrentCUDAStream(it.side.device_index()));
    });
}

// Between these two, work is recorded and not done. What other threads ask of CUDA meanwhile, NCCL's for one, does not matter.
bool dft_cuda_graph_begin(void* graph) {
    return tried([&] { static_cast<Captured*>(graph)->graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal); });
}

bool dft_cuda_graph_end(void* graph) {
    return tried([&] { static_cast<Captured*>(graph)->graph.capture_end(); });
}

// Does what was recorded, on the current stream.
bool dft_cuda_graph_replay(void* graph) {
    return tried([&] { static_cast<Captured*>(graph)->graph.replay(); });
}

} // extern "C"

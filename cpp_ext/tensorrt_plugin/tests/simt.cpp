#include "simt.hpp"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace qwenvl::simt {

Index thread_index, block_index, grid_size;
bool descending = false;
long conflicts = 0;
int launches = 0;

namespace {

constexpr std::size_t kStackBytes = 512 * 1024;

struct Copy {
    void* shared;
    const void* global;
    bool valid;
};

struct Fiber {
    ucontext_t context;
    std::vector<unsigned char> stack;
    std::vector<Copy> copies;
    bool finished;
};

// Lets `size` threads pass when all have come.
struct Barrier {
    int size, arrived;
    unsigned generation;
};

// Exchanges alternate between two places: nobody is two ahead, because every one waits for the whole warp.
struct Warp {
    Barrier barrier;
    Exchange places[2];
    unsigned exchanges[32];
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
Barrier block;
std::vector<unsigned char> shared;
ucontext_t scheduler;
const std::function<void()>* body;
bool progress, any_progress;

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "thread %u of block (%u, %u, %u): %s\n", thread_index.x, block_index.x, block_index.y,
                 block_index.z, what);
    std::abort();
}

Fiber& self() { return fibers[thread_index.x]; }

void wait(Barrier& barrier) {
    progress = true;
    const unsigned generation = barrier.generation;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0, ++barrier.generation;
        return;
    }
    while (barrier.generation == generation) swapcontext(&self().context, &scheduler);
    progress = true;
}

void enter() {
    (*body)();
    if (!self().copies.empty()) fail("ends with copies that nobody waited for");
    self().finished = true;
    progress = true;
}

void prepare(int threads, std::size_t shared_bytes) {
    fibers.resize(threads);
    for (Fiber& fiber : fibers) {
        fiber.stack.resize(kStackBytes);
        fiber.finished = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, enter, 0);
    }
    warps.assign((threads + 31) / 32, Warp{});
    for (std::size_t w = 0; w < warps.size(); ++w)
        warps[w].barrier.size = std::min(32, threads - static_cast<int>(w) * 32);
    block = {threads, 0, 0};
    shared.assign(shared_bytes + kSharedAlignment, 0xFF);
}

// Resumes every thread of a warp, again and again, until all wait for other warps or have ended. Returns how many
// ended.
int run_warp(int first, int size) {
    int ended = 0;
    do {
        progress = false;
        for (int i = 0; i < size; ++i) {
            const int thread = first + (descending ? size - 1 - i : i);
            if (fibers[thread].finished) continue;
            thread_index = {static_cast<unsigned>(thread), 0, 0};
            swapcontext(&scheduler, &fibers[thread].context);
            ended += fibers[thread].finished;
        }
        any_progress |= progress;
    } while (progress);
    return ended;
}

// One warp after the other, each as far as it gets: what it needs of another and does not wait for is not there.
void run_block(int threads) {
    const int count = static_cast<int>(warps.size());
    for (int left = threads; left > 0;) {
        any_progress = false;
        for (int i = 0; i < count; ++i) {
            const int warp = descending ? count - 1 - i : i;
            left -= run_warp(32 * warp, warps[warp].barrier.size);
        }
        if (!any_progress) fail("waits for threads that never come");
    }
}

}  // namespace

unsigned char* shared_memory() {
    const auto address = reinterpret_cast<std::uintptr_t>(shared.data());
    return shared.data() + (kSharedAlignment - address % kSharedAlignment) % kSharedAlignment;
}

void run(dim3 grid, int threads, std::size_t shared_bytes, const std::function<void()>& kernel) {
    body = &kernel;
    ++launches;
    grid_size = {grid.x, grid.y, grid.z};
    for (block_index.z = 0; block_index.z < grid.z; ++block_index.z)
        for (block_index.y = 0; block_index.y < grid.y; ++block_index.y)
            for (block_index.x = 0; block_index.x < grid.x; ++block_index.x) {
                prepare(threads, shared_bytes);
                run_block(threads);
            }
}

void block_barrier() { wait(block); }

const Exchange& exchange(const void* value, std::size_t size) {
    Warp& warp = warps[thread_index.x / 32];
    Exchange& place = warp.places[warp.exchanges[lane()]++ % 2];
    if (size > 0) std::memcpy(place.bytes[lane()], value, size);
    wait(warp.barrier);
    return place;
}

void check_aligned(const void* pointer, std::size_t alignment, const char* what) {
    if (reinterpret_cast<std::uintptr_t>(pointer) % alignment != 0) fail(what);
}

void count_conflicts(const Exchange& rows) {
    if (lane() != 0) return;
    for (int matrix = 0; matrix < 4; ++matrix) {
        unsigned units = 0;
        for (int j = 0; j < 8; ++j) {
            const auto address = reinterpret_cast<std::uintptr_t>(from_lane<const void*>(rows, 8 * matrix + j));
            units |= 1u << address / 16 % 8;
        }
        conflicts += units != 0xFF;
    }
}

void copy_later(void* target, const void* global, bool valid) {
    check_aligned(target, 16, "cp.async to a misaligned address");
    check_aligned(global, 16, "cp.async from a misaligned address");
    self().copies.push_back({target, global, valid});
}

void finish_copies() {
    for (const Copy& copy : self().copies) {
        if (copy.valid)
            std::memcpy(copy.shared, copy.global, 16);
        else
            std::memset(copy.shared, 0, 16);
    }
    self().copies.clear();
}

}  // namespace qwenvl::simt

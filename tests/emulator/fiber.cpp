#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace dllm::emulate {
namespace {

constexpr size_t kStackBytes = 256 * 1024;  // reserved; what a thread never touches costs nothing

Fiber* running = nullptr;
Context resumer;

// AddressSanitizer has to be told which stack is in use.
#if defined(__SANITIZE_ADDRESS__)
const void* resumer_stack = nullptr;
size_t resumer_stack_bytes = 0;

void leaving(void** fake_stack, const void* stack, size_t bytes) {
    __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
}
void leaving_to_resumer(void** fake_stack) { leaving(fake_stack, resumer_stack, resumer_stack_bytes); }
void arrived(void* fake_stack) { __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr); }
void arrived_first() { __sanitizer_finish_switch_fiber(nullptr, &resumer_stack, &resumer_stack_bytes); }
void forget_frames(const char* stack) { __asan_unpoison_memory_region(stack, kStackBytes); }
#else
void leaving(void**, const void*, size_t) {}
void leaving_to_resumer(void**) {}
void arrived(void*) {}
void arrived_first() {}
void forget_frames(const char*) {}
#endif

#if defined(__x86_64__)
// swapcontext would make a system call a switch.
extern "C" void dllm_emulate_switch(Context* from, Context to);
asm(R"(
.text
.type dllm_emulate_switch, @function
dllm_emulate_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size dllm_emulate_switch, . - dllm_emulate_switch
)");

void switch_context(Context& from, Context& to) { dllm_emulate_switch(&from, to); }

void make_context(Context& context, char* stack, void (*entry)()) {
    // Six registers, the address that the switch returns to, and none that `entry` does.
    auto* const top = reinterpret_cast<uint64_t*>(stack + kStackBytes);
    top[-1] = 0;
    top[-2] = reinterpret_cast<uint64_t>(entry);
    for (int i = 3; i <= 8; ++i) top[-i] = 0;
    context = top - 8;
}
#else
void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

void make_context(Context& context, char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

}  // namespace

Fiber::Fiber() {
    // A page that cannot be touched lies below the stack: running over its end is seen.
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* const memory =
        mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
        std::perror("emulate: no memory for the stack of a thread");
        std::abort();
    }
    stack_ = static_cast<char*>(memory) + page;
}

Fiber::~Fiber() {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    munmap(stack_ - page, kStackBytes + page);
}

void Fiber::start(void (*function)()) {
    function_ = function;
    finished_ = false;
    forget_frames(stack_);
    make_context(context_, stack_, &Fiber::enter);
}

void Fiber::resume() {
    running = this;
    void* fake_stack = nullptr;
    leaving(&fake_stack, stack_, kStackBytes);
    switch_context(resumer, context_);
    arrived(fake_stack);
    running = nullptr;
}

void Fiber::suspend() {
    Fiber& fiber = *running;
    fiber.leave(&fiber.fake_stack_);
    arrived(fiber.fake_stack_);
}

void Fiber::leave(void** fake_stack) {
    leaving_to_resumer(fake_stack);
    switch_context(context_, resumer);
}

void Fiber::enter() {
    arrived_first();
    running->function_();
    running->finished_ = true;
    running->leave(nullptr);
}

}  // namespace dllm::emulate

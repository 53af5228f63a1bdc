// A function with a stack of its own, which can be left in its midst and gone on with later.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace dllm::emulate {

#if defined(__x86_64__)
using Context = void*;  // the stack pointer; all else is on the stack
#else
using Context = ucontext_t;
#endif

class Fiber {
  public:
    Fiber();
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // The next resume() begins `function`; the stack of a finished fiber is used again.
    void start(void (*function)());
    // Runs the fiber until it suspends or its function returns.
    void resume();
    bool finished() const { return finished_; }
    // Leaves the fiber that runs.
    static void suspend();

  private:
    static void enter();
    // Goes back to who called resume(); `fake_stack` is null where the fiber is not gone on with.
    void leave(void** fake_stack);

    char* stack_;
    Context context_{};
    void (*function_)() = nullptr;
    void* fake_stack_ = nullptr;
    bool finished_ = true;
};

}  // namespace dllm::emulate

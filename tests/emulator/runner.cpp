// Runs calls of launchers on a CPU: reads the seed, the number of SMs, the fault, the buffers and the calls from
// standard input, and writes the buffers as the kernels left them to standard output. tests/emulate.py is the other
// end. Faults go to standard error; the exit status is then not 0.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <span>
#include <string>
#include <vector>

#include "calls.h"
#include "machine.h"

namespace {

using dllm::emulate::fail;

void read(void* target, size_t bytes) {
    if (std::fread(target, 1, bytes, stdin) != bytes) fail("the request ends early");
}

uint64_t read_number() {
    uint64_t number;
    read(&number, sizeof number);
    return number;
}

std::string read_text() {
    std::string text(read_number(), '\0');
    read(text.data(), text.size());
    return text;
}

// Device memory is aligned to 256 bytes; with AddressSanitizer nothing beside it can be touched.
std::span<char> read_buffer() {
    const size_t bytes = read_number();
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, bytes) != 0) fail("no memory");
    read(memory, bytes);
    return {static_cast<char*>(memory), bytes};
}

void read_call(const std::vector<std::span<char>>& buffers) {
    const std::string name = read_text(), structure = read_text();
    const auto found = dllm::emulate::calls().find(name);
    if (found == dllm::emulate::calls().end() || !found->second.launch) fail("there is no launcher " + name);
    if (found->second.bytes != structure.size()) {
        fail("the structure of " + name + " has " + std::to_string(found->second.bytes) + " bytes in C++ and " +
             std::to_string(structure.size()) + " in Python");
    }
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, structure.size()) != 0) fail("no memory");
    std::memcpy(memory, structure.data(), structure.size());
    for (uint64_t pointers = read_number(); pointers > 0; --pointers) {
        const uint64_t place = read_number(), buffer = read_number(), offset = read_number();
        const char* const address = buffers[buffer].data() + offset;
        std::memcpy(static_cast<char*>(memory) + place, &address, sizeof address);
    }
    found->second.launch(memory);
    std::free(memory);  // a launcher is done with it when it returns
}

}  // namespace

int main() {
    const uint64_t seed = read_number();
    dllm::emulate::fault = static_cast<uint32_t>(read_number());
    std::vector<std::span<char>> buffers(read_number());
    for (auto& buffer : buffers) buffer = read_buffer();
    try {
        for (uint64_t count = read_number(); count > 0; --count) read_call(buffers);
    } catch (const std::exception& error) {
        fail(error.what());
    }
    dllm::emulate::run(seed);
    for (const auto& buffer : buffers) std::fwrite(buffer.data(), 1, buffer.size(), stdout);
    return std::fflush(stdout) == 0 ? 0 : 1;
}

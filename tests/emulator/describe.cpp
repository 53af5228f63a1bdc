// Prints what the kernels have code for as JSON, for describe.py.
#include "dllm/describe.h"

#include <cstdio>

int main() {
    dllm::Description found;
    dllm::describe_attention(found);
    dllm::describe_denoise_update(found);
    dllm::describe_linear_persistent(found);
    dllm::describe_linear_skinny(found);
    dllm::describe_lm_head_persistent(found);
    dllm::describe_lm_head_skinny(found);

    const char* separator = "";
    std::printf("{\"tiles\": [");
    for (auto& tile : found.tiles) {
        std::printf("%s\n {\"kernel\": \"%s\"", separator, tile.kernel);
        tile.config.each_field([](const char* name, uint32_t value) { std::printf(", \"%s\": %u", name, value); });
        std::printf(", \"wgmma\": %s", tile.wgmma ? "true" : "false");
        std::printf(", \"max_stages\": %u, \"max_input_stages\": %u, \"ring_offset\": %u, \"product_bytes\": %u}",
                    tile.max_stages, tile.max_input_stages, tile.ring_offset, tile.product_bytes);
        separator = ",";
    }
    std::printf("\n],\n\"limits\": [");
    separator = "";
    for (const auto& limit : found.limits) {
        std::printf("%s\n {\"kernel\": \"%s\", \"name\": \"%s\", \"value\": %u}", separator, limit.kernel, limit.name,
                    limit.value);
        separator = ",";
    }
    std::printf("\n]}\n");
}

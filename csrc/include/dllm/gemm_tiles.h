// The tiles that a kernel has code for: a list of types in its source, from which its launcher picks one at run time.
#pragma once

#include <cstdint>
#include <string>

#include "dllm/kernels.h"

namespace dllm {

// Tiles have static constexpr members kM, kN, kK, kWarpsM, kWarpsN, and kSplitK where it is fixed.
template <typename... Tiles>
struct TileList {
    // action(tile) for each, an object without data.
    template <typename Action>
    static void each(Action action) {
        (action(Tiles{}), ...);
    }

    // action(tile) for the one that a config asks for; whether there is one.
    template <typename Action>
    static bool visit(const GemmConfig& config, Action action) {
        return ((is<Tiles>(config) && (action(Tiles{}), true)) || ...);
    }

  private:
    template <typename Tile>
    static bool is(const GemmConfig& config) {
        if constexpr (requires { Tile::kSplitK; }) {
            if (config.split_k != Tile::kSplitK) return false;
        }
        return config.tile_m == Tile::kM && config.tile_n == Tile::kN && config.tile_k == Tile::kK &&
               config.num_warps_m == Tile::kWarpsM && config.num_warps_n == Tile::kWarpsN;
    }
};

// A tile's config with the least rings.
template <typename Tile>
GemmConfig config_of(uint32_t split_k, uint32_t input_stages) {
    return {Tile::kM, Tile::kN, Tile::kK, Tile::kWarpsM, Tile::kWarpsN, split_k, 2, input_stages};
}

// For messages.
inline std::string described(const GemmConfig& config) {
    const auto by = [](uint32_t first, uint32_t second) {
        return std::to_string(first) + " x " + std::to_string(second);
    };
    return "tiles of " + by(config.tile_m, config.tile_n) + " with stages of " + std::to_string(config.tile_k) + ", " +
           by(config.num_warps_m, config.num_warps_n) + " warps and K in " + std::to_string(config.split_k) + " slices";
}

}  // namespace dllm

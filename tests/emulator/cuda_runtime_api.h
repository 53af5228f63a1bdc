// What launchers need of the CUDA runtime, for a CPU.
#pragma once

using cudaStream_t = struct CUstream_st*;

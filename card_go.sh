DLLM_CUDA_ARCHS=${ARCHS:-90} MAX_JOBS=16 python3 setup.py -q build_ext --inplace > $OUT/build.log 2>&1 || { tail -30 $OUT/build.log; exit 1; }
echo built $SECONDS
export PYTHONPATH=$PWD
DLLM_PROXY=sm_120 timeout ${LIMIT:-250} python3 card_explore.py "$@" > $OUT/explore.log 2>&1
tail -c 9000 $OUT/explore.log

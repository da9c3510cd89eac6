"""The CUDA library of llmd, without Python in it: ``llmd.cuda`` loads ``libllmd_cuda.so`` from this folder."""

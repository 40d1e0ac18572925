// launch: threads=128 shared_bytes=0 grid=(ceildiv(Sq, 128), Hq, B)
#include <cuda_bf16.h>

// One thread computes one row, in two passes over the keys.
extern "C" __global__ void __launch_bounds__(128) plain(
    const __nv_bfloat16* Q, long long Q_b, long long Q_s, long long Q_h,
    const __nv_bfloat16* K, long long K_b, long long K_s, long long K_h,
    const __nv_bfloat16* V, long long V_b, long long V_s, long long V_h,
    __nv_bfloat16* Out, long long Out_b, long long Out_s, long long Out_h,
    int B, int Sq, int Sk, int Hq, int Hk,
    float scale)
{
    int q = blockIdx.x * blockDim.x + threadIdx.x, h = blockIdx.y, b = blockIdx.z, g = h / (Hq / Hk);
    if (q >= Sq) return;
    const __nv_bfloat16* row = Q + b * Q_b + q * Q_s + h * Q_h;
    float most = -3.0e38f, sum = 0.0f, out[64] = {};
    for (int pass = 0; pass < 2; ++pass) {
        for (int k = 0; k < Sk; ++k) {
            float score = 0.0f;
            for (int d = 0; d < 64; ++d)
                score += __bfloat162float(row[d]) * __bfloat162float(K[b * K_b + k * K_s + g * K_h + d]);
            score *= scale;
            if (pass == 0) { most = fmaxf(most, score); continue; }
            float weight = __expf(score - most);
            sum += weight;
            for (int d = 0; d < 64; ++d) out[d] += weight * __bfloat162float(V[b * V_b + k * V_s + g * V_h + d]);
        }
    }
    for (int d = 0; d < 64; ++d)
        Out[b * Out_b + q * Out_s + h * Out_h + d] = __float2bfloat16(sum > 0.0f ? out[d] / sum : 0.0f);
}

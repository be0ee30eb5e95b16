// The exact half-step on a GPU, compiled at run time after async_copy.cu by cuda_solver.py, which defines
//   WIDTH       coordinates of z, padded: free ones to a multiple of 8, then 8 for known ones if there are any
//   FREE        free coordinates before padding
//   FREE_TILES  8 x 8 tiles across the free coordinates
//   TILE_ROWS   tiles across all coordinates: FREE_TILES, or one more with known ones
//   GROUPS      segments per block of `accumulate`
//   DEPTH       cells per stage of its pipeline
//   BLOCKS, SOLVE_BLOCKS  blocks of `accumulate` and `solve` that a multiprocessor shall hold at once
//
//     A_i = rho g_i G + sum_l d_l z_l z_l^T,   b_i = sum_l c_l z_l,   c_l = (d_l + rho g_i h_l) m_l
//
// `coefficients` makes c; `accumulate` makes the sums over a segment of a row's cells; `solve` adds the segments and
// rho g_i G, moves the known coordinates to the right side, factorises A + diag(ridge) = L L^T, solves, and takes the
// loss from the residual in float64. A thread holds one 8 x 8 tile of the lower triangle in registers throughout.
// All sums have a fixed order, so a row's result depends on nothing but the row.

#define TILES (TILE_ROWS * (TILE_ROWS + 1) / 2)
#define CHUNKS (WIDTH / 4)                // of 16 bytes, in a row of z
#define LANES (TILES / CHUNKS)         // cells that a group's threads copy at once
#define PASSES ((DEPTH + LANES - 1) / LANES)
#define THREADS ((GROUPS * TILES + 31) / 32 * 32)
#define SOLVE_THREADS ((TILES + 31) / 32 * 32)
#define SOLVED (8 * FREE_TILES)
#define STAGES 3
#define FOLD 8                         // stages whose part of b is summed in float32

typedef long long int64;

// Tile t of a lower triangle counted row by row.
__device__ __forceinline__ void tile_of(int t, int& i, int& j) {
    i = (int)((sqrtf(8.0f * t + 1.0f) - 1.0f) * 0.5f);
    while ((i + 1) * (i + 2) / 2 <= t) ++i;
    while (i * (i + 1) / 2 > t) --i;
    j = t - i * (i + 1) / 2;
}

// acc += x y^T for the 8-vectors at x and y, whose halves lie `half` floats apart: so that the lanes of a warp, which
// hold neighbouring tiles, read neighbouring 16 bytes.
__device__ __forceinline__ void outer(float (&acc)[8][8], const float* x, const float* y, int half, float sign) {
    float4 x0 = *(const float4*)x, x1 = *(const float4*)(x + half);
    float4 y0 = *(const float4*)y, y1 = *(const float4*)(y + half);
    float a[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
    float b[8] = {y0.x, y0.y, y0.z, y0.w, y1.x, y1.y, y1.z, y1.w};
#pragma unroll
    for (int r = 0; r < 8; ++r)
#pragma unroll
        for (int c = 0; c < 8; ++c) acc[r][c] = fmaf(sign * a[r], b[c], acc[r][c]);
}

// One warp per segment: c of its cells, and sum c m in float64.
extern "C" __global__ void coefficients(
    int segments, const int* row, const int64* start, const int* length, const int* indices, const float* m,
    const float* d, const float* h, const float* scale, float* coefficient, double* constant) {
    int segment = (int)((blockIdx.x * (int64)blockDim.x + threadIdx.x) / 32), lane = threadIdx.x % 32;
    if (segment >= segments) return;
    int64 first = start[segment];
    float own = scale[row[segment]];
    double sum = 0.0;
    for (int l = lane; l < length[segment]; l += 32) {
        float target = m[first + l];
        float c = (d[first + l] + own * h[indices[first + l]]) * target;
        coefficient[first + l] = c;
        sum += (double)c * target;
    }
#pragma unroll
    for (int step = 16; step; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
    if (lane == 0) constant[segment] = sum;
}

// A block per G segments, which come in falling order of length. a: (segments, 16, TILES, 4); b: (segments, WIDTH).
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) accumulate(
    int segments, const int64* start, const int* length, const int* indices, const float* d, const float* coefficient,
    const float* z, float* a, double* b) {
    extern __shared__ float4 copies_of_z[];
    int group = threadIdx.x / TILES, tile = threadIdx.x % TILES;
    int64 segment = (int64)blockIdx.x * GROUPS + group;
    bool works = group < GROUPS && segment < segments;
    int cells = works ? length[segment] : 0;
    int64 first = works ? start[segment] : 0;
    int longest = 0;
    for (int s = 0; s < GROUPS && (int64)blockIdx.x * GROUPS + s < segments; ++s)
        longest = max(longest, length[(int64)blockIdx.x * GROUPS + s]);
    int steps = (longest + DEPTH - 1) / DEPTH;

    float* raw = (float*)copies_of_z + (group < GROUPS ? group : 0) * (STAGES + 2) * DEPTH * WIDTH;
    float* scaled = raw + STAGES * DEPTH * WIDTH;
    int chunk = tile % CHUNKS, lane = tile / CHUNKS;
    bool copies = works && lane < LANES;
    int place = (chunk & 1) * (WIDTH / 2) + (chunk >> 1) * 4;
    int i, j;
    tile_of(tile, i, j);

    float acc[8][8];
#pragma unroll
    for (int r = 0; r < 8; ++r)
#pragma unroll
        for (int c = 0; c < 8; ++c) acc[r][c] = 0.0f;
    float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    double whole[4] = {0.0, 0.0, 0.0, 0.0};
    int next[PASSES];       // columns of the stage that is copied next
    float dn[PASSES], cn[PASSES];  // d and c of the stage that is used next

    auto look_ahead = [&](int step) {
#pragma unroll
        for (int p = 0; p < PASSES; ++p) {
            int cell = step * DEPTH + lane + p * LANES;
            next[p] = copies && lane + p * LANES < DEPTH && cell < cells ? indices[first + cell] : -1;
        }
    };
    auto copy = [&](int step) {
        float* to = raw + step % STAGES * DEPTH * WIDTH;
#pragma unroll
        for (int p = 0; p < PASSES; ++p) {
            if (copies && lane + p * LANES < DEPTH) {
                float* target = to + (lane + p * LANES) * WIDTH + place;
                if (next[p] >= 0) copy_async(target, z + (int64)next[p] * WIDTH + chunk * 4);
                else *(float4*)target = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            }
        }
        commit();
    };
    auto factors = [&](int step) {
#pragma unroll
        for (int p = 0; p < PASSES; ++p) {
            int cell = step * DEPTH + lane + p * LANES;
            bool real = copies && lane + p * LANES < DEPTH && cell < cells;
            dn[p] = real ? d[first + cell] : 0.0f;
            cn[p] = real ? coefficient[first + cell] : 0.0f;
        }
    };

    look_ahead(0); copy(0);
    look_ahead(1); copy(1);
    look_ahead(2);
    factors(0);
    for (int step = 0; step < steps; ++step) {
        float* z_here = raw + step % STAGES * DEPTH * WIDTH;
        float* dz_here = scaled + step % 2 * DEPTH * WIDTH;
        wait_but_one();
#pragma unroll
        for (int p = 0; p < PASSES; ++p) {
            if (copies && lane + p * LANES < DEPTH) {
                int at = (lane + p * LANES) * WIDTH + place;
                float4 v = *(float4*)(z_here + at);
                *(float4*)(dz_here + at) = make_float4(v.x * dn[p], v.y * dn[p], v.z * dn[p], v.w * dn[p]);
                part[0] = fmaf(cn[p], v.x, part[0]);
                part[1] = fmaf(cn[p], v.y, part[1]);
                part[2] = fmaf(cn[p], v.z, part[2]);
                part[3] = fmaf(cn[p], v.w, part[3]);
            }
        }
        if (step % FOLD == FOLD - 1 || step == steps - 1) {
#pragma unroll
            for (int q = 0; q < 4; ++q) { whole[q] += part[q]; part[q] = 0.0f; }
        }
        // After this everybody has this stage, and nobody is still at the one before.
        __syncthreads();
        copy(step + 2);
        look_ahead(step + 3);
        factors(step + 1);
        if (works) {
#pragma unroll 2
            for (int l = 0; l < DEPTH; ++l)
                outer(acc, dz_here + l * WIDTH + i * 4, z_here + l * WIDTH + j * 4, WIDTH / 2, 1.0f);
        }
    }
    wait_all();
    __syncthreads();

    double* sums = (double*)raw;  // (LANES, WIDTH)
    if (copies)
        for (int q = 0; q < 4; ++q) sums[lane * WIDTH + chunk * 4 + q] = whole[q];
    __syncthreads();
    if (!works) return;
    for (int p = tile; p < WIDTH; p += TILES) {
        double sum = 0.0;
        for (int s = 0; s < LANES; ++s) sum += sums[s * WIDTH + p];
        b[segment * WIDTH + p] = sum;
    }
    float4* out = (float4*)a + segment * 16 * TILES + tile;
#pragma unroll
    for (int r = 0; r < 8; ++r) {
        out[(2 * r) * TILES] = make_float4(acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
        out[(2 * r + 1) * TILES] = make_float4(acc[r][4], acc[r][5], acc[r][6], acc[r][7]);
    }
}

// The tile of A_i: its segments in their order, and scale G.
__device__ __forceinline__ void load_tile(
    float (&acc)[8][8], const float* a, int64 from, int64 to, int tile, int i, int j, const float* gramian,
    float scale) {
#pragma unroll
    for (int r = 0; r < 8; ++r)
#pragma unroll
        for (int c = 0; c < 8; c += 4) {
            float4 g = *(const float4*)(gramian + (i * 8 + r) * WIDTH + j * 8 + c);
            acc[r][c] = scale * g.x; acc[r][c + 1] = scale * g.y;
            acc[r][c + 2] = scale * g.z; acc[r][c + 3] = scale * g.w;
        }
    for (int64 s = from; s < to; ++s) {
        const float4* in = (const float4*)a + s * 16 * TILES + tile;
#pragma unroll
        for (int r = 0; r < 8; ++r)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                float4 v = in[(2 * r + c) * TILES];
                acc[r][4 * c] += v.x; acc[r][4 * c + 1] += v.y;
                acc[r][4 * c + 2] += v.z; acc[r][4 * c + 3] += v.w;
            }
    }
}

// What is added to the diagonal: the ridge, and 1 for the coordinates that pad. Not indexed by `c` at run time.
__device__ __forceinline__ void add_ridge(float (&acc)[8][8], int i, const float* ridge) {
#pragma unroll
    for (int c = 0; c < 8; ++c) acc[c][c] += i * 8 + c < FREE ? ridge[i * 8 + c] : 1.0f;
}

// A block per row. segment: (rows + 1,) first segment of each row; own: its number among the own rows.
// known: (own rows, 8); ridge, x: (own rows, FREE).
extern "C" __global__ void __launch_bounds__(SOLVE_THREADS, SOLVE_BLOCKS) solve(
    const int64* segment, const int* own, const float* a, const double* b, const double* constants,
    const float* gramian, const float* scales, const double* known, const float* ridge, float* x, double* loss,
    int* failed) {
    __shared__ __align__(16) float panel[8 * SOLVED];
    __shared__ float diagonal[64];
    __shared__ float work[SOLVED];       // y in the making, then what is left of it
    __shared__ float solution[SOLVED];
    __shared__ double right[WIDTH];
    extern __shared__ double partial[];  // (FREE_TILES, SOLVED)
    __shared__ double constant;
    __shared__ int broken;

    int tile = threadIdx.x, i, j;
    tile_of(tile, i, j);
    bool works = tile < TILES, free = works && i < FREE_TILES;
    int64 from = segment[blockIdx.x], to = segment[blockIdx.x + 1];
    int row = own[blockIdx.x];
    float scale = scales[row];
    float acc[8][8];

    if (works) load_tile(acc, a, from, to, tile, i, j, gramian, scale);
    for (int p = tile; p < WIDTH; p += SOLVE_THREADS) {
        double sum = 0.0;
        for (int64 s = from; s < to; ++s) sum += b[s * WIDTH + p];
        right[p] = sum;
    }
    if (tile == 0) {
        double sum = 0.0;
        for (int64 s = from; s < to; ++s) sum += constants[s];
        constant = sum;
        broken = 0;
    }
    __syncthreads();
#if TILE_ROWS > FREE_TILES
    // b_free - A_free,known t, and the constant less 2 b_held t, plus t A_held,known t.
    if (works && i == FREE_TILES) {
        double t[8];
#pragma unroll
        for (int p = 0; p < 8; ++p) t[p] = known[(int64)row * 8 + p];
        if (j < FREE_TILES) {
#pragma unroll
            for (int c = 0; c < 8; ++c) {
                double sum = 0.0;
#pragma unroll
                for (int p = 0; p < 8; ++p) sum += acc[p][c] * t[p];
                right[j * 8 + c] -= sum;
            }
        } else {
            double sum = 0.0;
#pragma unroll
            for (int p = 0; p < 8; ++p) {
                sum -= 2.0 * right[SOLVED + p] * t[p];
#pragma unroll
                for (int q = 0; q < 8; ++q) sum += t[p] * acc[p][q] * t[q];
            }
            constant += sum;
        }
    }
    __syncthreads();
#endif
    for (int p = tile; p < SOLVED; p += SOLVE_THREADS) work[p] = (float)right[p];
    if (free && i == j) add_ridge(acc, i, ridge + (int64)row * FREE);
    __syncthreads();

    // A = L L^T, a column of tiles at a time, and L y = b with it. A diagonal keeps 1 / L_cc.
    for (int step = 0; step < FREE_TILES; ++step) {
        if (free && i == step && j == step) {
#pragma unroll
            for (int c = 0; c < 8; ++c) {
                float pivot = acc[c][c];
                if (!(pivot > 0.0f)) broken = 1;
                float inverse = rsqrtf(pivot);
                inverse = inverse * (1.5f - 0.5f * pivot * inverse * inverse);
                acc[c][c] = inverse;
#pragma unroll
                for (int r = c + 1; r < 8; ++r) acc[r][c] *= inverse;
#pragma unroll
                for (int e = c + 1; e < 8; ++e)
#pragma unroll
                    for (int r = e; r < 8; ++r) acc[r][e] = fmaf(-acc[r][c], acc[e][c], acc[r][e]);
            }
            float y[8];
#pragma unroll
            for (int c = 0; c < 8; ++c) {
                y[c] = work[step * 8 + c];
#pragma unroll
                for (int e = 0; e < c; ++e) y[c] = fmaf(-acc[c][e], y[e], y[c]);
                y[c] *= acc[c][c];
                work[step * 8 + c] = y[c];
            }
#pragma unroll
            for (int r = 0; r < 8; ++r)
#pragma unroll
                for (int c = 0; c <= r; ++c) diagonal[r * 8 + c] = acc[r][c];
        }
        __syncthreads();
        if (free && j == step && i > step) {
            // X L^T = A for the tile below the diagonal.
#pragma unroll
            for (int c = 0; c < 8; ++c) {
                float inverse = diagonal[c * 8 + c];
#pragma unroll
                for (int e = 0; e < c; ++e) {
                    float l = diagonal[c * 8 + e];
#pragma unroll
                    for (int r = 0; r < 8; ++r) acc[r][c] = fmaf(-acc[r][e], l, acc[r][c]);
                }
#pragma unroll
                for (int r = 0; r < 8; ++r) acc[r][c] *= inverse;
            }
#pragma unroll
            for (int c = 0; c < 8; ++c) {
                float* to_panel = panel + c * SOLVED + i * 4;
                *(float4*)to_panel = make_float4(acc[0][c], acc[1][c], acc[2][c], acc[3][c]);
                *(float4*)(to_panel + SOLVED / 2) = make_float4(acc[4][c], acc[5][c], acc[6][c], acc[7][c]);
            }
#pragma unroll
            for (int r = 0; r < 8; ++r) {
                float sum = work[i * 8 + r];
#pragma unroll
                for (int c = 0; c < 8; ++c) sum = fmaf(-acc[r][c], work[step * 8 + c], sum);
                work[i * 8 + r] = sum;
            }
        }
        __syncthreads();
        if (free && j > step) {
#pragma unroll
            for (int e = 0; e < 8; ++e) outer(acc, panel + e * SOLVED + i * 4, panel + e * SOLVED + j * 4, SOLVED / 2, -1.0f);
        }
    }
    __syncthreads();

    // L^T x = y.
    for (int step = FREE_TILES - 1; step >= 0; --step) {
        if (free && i == step && j == step) {
            float s[8];
#pragma unroll
            for (int c = 7; c >= 0; --c) {
                s[c] = work[step * 8 + c];
#pragma unroll
                for (int e = c + 1; e < 8; ++e) s[c] = fmaf(-acc[e][c], s[e], s[c]);
                s[c] *= acc[c][c];
                solution[step * 8 + c] = s[c];
            }
        }
        __syncthreads();
        if (free && i == step && j < step) {
#pragma unroll
            for (int c = 0; c < 8; ++c) {
                float sum = work[j * 8 + c];
#pragma unroll
                for (int r = 0; r < 8; ++r) sum = fmaf(-acc[r][c], solution[step * 8 + r], sum);
                work[j * 8 + c] = sum;
            }
        }
        __syncthreads();
    }

    // The residual b - A x in float64, summed tile by tile in a fixed order.
    if (free) {
        load_tile(acc, a, from, to, tile, i, j, gramian, scale);
        if (i == j) add_ridge(acc, i, ridge + (int64)row * FREE);
#pragma unroll
        for (int r = 0; r < 8; ++r) {
            double sum = 0.0;
#pragma unroll
            for (int c = 0; c < 8; ++c) sum += (double)acc[r][c] * solution[j * 8 + c];
            partial[j * SOLVED + i * 8 + r] = sum;
        }
        if (i != j) {
#pragma unroll
            for (int c = 0; c < 8; ++c) {
                double sum = 0.0;
#pragma unroll
                for (int r = 0; r < 8; ++r) sum += (double)acc[r][c] * solution[i * 8 + r];
                partial[i * SOLVED + j * 8 + c] = sum;
            }
        }
    }
    __syncthreads();
    for (int p = tile; p < SOLVED; p += SOLVE_THREADS) {
        double residual = right[p];
        for (int s = 0; s < FREE_TILES; ++s) residual -= partial[s * SOLVED + p];
        if (p < FREE) x[(int64)row * FREE + p] = solution[p];
        // Each reads and writes its own column only.
        partial[p] = (right[p] + residual) * solution[p];
    }
    __syncthreads();
    if (tile < 32) {
        double sum = 0.0;
        for (int p = tile; p < SOLVED; p += 32) sum += partial[p];
#pragma unroll
        for (int step = 16; step; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
        if (tile == 0) {
            loss[row] = constant - sum;
            failed[row] = broken;
        }
    }
}

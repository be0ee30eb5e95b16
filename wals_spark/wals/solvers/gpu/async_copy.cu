// Copies from device to shared memory that a thread need not wait for (compute capability 8.0 and newer).

// 16 bytes, both addresses being multiples of 16.
__device__ __forceinline__ void copy_async(float* to, const float* from) {
    unsigned address = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(address), "l"(from));
}

// The thread's copies since the last commit become a group.
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;\n" ::); }

// Until all of the thread's groups but the newest have arrived.
__device__ __forceinline__ void wait_but_one() { asm volatile("cp.async.wait_group 1;\n" ::: "memory"); }

__device__ __forceinline__ void wait_all() { asm volatile("cp.async.wait_all;\n" ::: "memory"); }


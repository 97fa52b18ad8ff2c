//! Settings of glibc's malloc.

/// Makes all threads share `count` arenas, so that memory does not grow with the number of threads that have ever
/// allocated (mallopt(3), `M_ARENA_MAX`). By default glibc gives each thread an arena of its own.
pub fn limit_heaps(count: u16) {
    // SAFETY: mallopt takes two plain integers and only sets a number inside the allocator.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, i32::from(count));
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = count;
}

/// Returns freed memory to the kernel (malloc_trim(3)). Worth calling after a short burst of large allocations.
pub fn give_back() {
    // SAFETY: malloc_trim takes the allocator's own locks and releases only pages that hold no allocation.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

//! Settings of glibc's malloc.

/// Lets all threads share `count` heaps instead of one for each thread, so that memory does not grow with
/// the number of threads that once allocated (mallopt(3), `M_ARENA_MAX`).
pub fn limit_heaps(count: u16) {
    // SAFETY: mallopt only sets a number of the allocator's; both arguments are plain integers.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, i32::from(count));
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = count;
}

/// Gives freed memory back to the system (malloc_trim(3)), after much was used for a short time.
pub fn give_back() {
    // SAFETY: malloc_trim takes the allocator's own locks and touches only what is free.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

//! The three descriptors that a program begins with, for programs with and without std. Whoever starts them sees to it that
//! they are open.

use rustix::fd::BorrowedFd;

macro_rules! stdio {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $(
            $(#[$doc])*
            pub fn $name() -> BorrowedFd<'static> {
                #[cfg(feature = "std")]
                return rustix::stdio::$name();
                // SAFETY: a program's first three descriptors are open from its begin, and nothing here closes them.
                #[cfg(not(feature = "std"))]
                return unsafe { rustix::stdio::$name() };
            }
        )*
    };
}

stdio! {
    /// Number 0.
    stdin
    /// Number 1.
    stdout
    /// Number 2.
    stderr
}

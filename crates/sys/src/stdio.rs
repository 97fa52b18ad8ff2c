//! The three standard descriptors, for programs with and without std. The program that starts this one must leave them
//! open.

use rustix::fd::BorrowedFd;

macro_rules! stdio {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $(
            $(#[$doc])*
            pub fn $name() -> BorrowedFd<'static> {
                #[cfg(feature = "std")]
                return rustix::stdio::$name();
                // SAFETY: the daemon starts a program without std with these three descriptors open, and the program
                // never closes them: it holds no `OwnedFd` for them.
                #[cfg(not(feature = "std"))]
                return unsafe { rustix::stdio::$name() };
            }
        )*
    };
}

stdio! {
    /// Standard input, descriptor 0.
    stdin
    /// Standard output, descriptor 1.
    stdout
    /// Standard error, descriptor 2.
    stderr
}

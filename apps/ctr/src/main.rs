//! The program `ctr`.

fn main() -> std::process::ExitCode {
    ctr::main()
}

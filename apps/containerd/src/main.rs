//! The program `containerd`.

fn main() -> std::process::ExitCode {
    containerd::main()
}

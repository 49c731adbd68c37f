//! The `tessera` command.

fn main() -> std::process::ExitCode {
    if tessera::config::is_without_session() {
        #[allow(
            unsafe_code,
            reason = "a driver layer reads its settings from the environment only"
        )]
        // SAFETY: no other thread exists yet.
        unsafe {
            std::env::set_var("NODEVICE_SELECT", "1");
        }
    }
    for name in tessera::config::empty_variables() {
        #[allow(unsafe_code, reason = "the parser of flags takes an empty variable for a value")]
        // SAFETY: no other thread exists yet.
        unsafe {
            std::env::remove_var(name);
        }
    }
    tessera::cli::main()
}

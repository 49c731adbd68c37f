//! The `tessera` command.

fn main() -> std::process::ExitCode {
    if tessera::config::is_without_session() {
        #[allow(unsafe_code, reason = "a layer of the driver can't be told by other means")]
        // SAFETY: there is no other thread yet.
        unsafe {
            std::env::set_var("NODEVICE_SELECT", "1");
        }
    }
    tessera::cli::main()
}

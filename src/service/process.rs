//! Metrics of the process, by the names that Prometheus's client libraries use. On Linux; elsewhere there are none.

use std::{fmt, fs};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// Reads the process's state when metrics are asked for.
#[derive(Debug)]
pub(super) struct ProcessCollector;

/// State of the process.
#[derive(Debug, PartialEq)]
struct Usage {
    cpu_seconds: f64,
    /// Since 1970.
    start_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    threads: u64,
    open_files: u64,
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(usage) = usage() else { return Ok(()) };
        let help = "User and system CPU time.";
        let cpu = ConstCounter::new(usage.cpu_seconds);
        let unit = Some(&Unit::Seconds);
        cpu.encode(encoder.encode_descriptor("process_cpu", help, unit, MetricType::Counter)?)?;
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?)
        };
        let (resident, total) = (usage.resident_bytes as f64, usage.virtual_bytes as f64);
        let bytes = Some(&Unit::Bytes);
        gauge("process_start_time", "Start time since 1970.", unit, usage.start_seconds)?;
        gauge("process_resident_memory", "Resident memory.", bytes, resident)?;
        gauge("process_virtual_memory", "Virtual memory.", bytes, total)?;
        gauge("process_threads", "Threads.", None, usage.threads as f64)?;
        gauge("process_open_fds", "Open file descriptors.", None, usage.open_files as f64)
    }
}

/// The state of this process; `None` if the system does not tell.
#[cfg(target_os = "linux")]
fn usage() -> Option<Usage> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let system = fs::read_to_string("/proc/stat").ok()?;
    let boot = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let open_files = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    let (ticks, page) =
        (rustix::param::clock_ticks_per_second() as f64, rustix::param::page_size() as u64);
    parse(&stat, boot, ticks, page, open_files)
}

#[cfg(not(target_os = "linux"))]
fn usage() -> Option<Usage> {
    None
}

/// Reads `/proc/self/stat`, proc(5). `boot`: seconds since 1970.
fn parse(stat: &str, boot: f64, ticks: f64, page: u64, open_files: u64) -> Option<Usage> {
    // The second field, the program's name in parentheses, may hold spaces and parentheses itself.
    let fields: Vec<_> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Usage {
        cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
        start_seconds: boot + field(22)? as f64 / ticks,
        resident_bytes: field(24)? * page,
        virtual_bytes: field(23)?,
        threads: field(20)?,
        open_files,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_state_is_read_from_the_fields_of_proc_5() {
        let stat = "12 (a b) (c) S 1 12 12 0 -1 4194560 0 0 0 0 150 50 0 0 20 0 7 0 1000 4096000 250 18446744073709551615";
        let expected = Usage {
            cpu_seconds: 2.0,
            start_seconds: 1_000_010.0,
            resident_bytes: 250 * 4096,
            virtual_bytes: 4_096_000,
            threads: 7,
            open_files: 9,
        };
        assert_eq!(parse(stat, 1e6, 100.0, 4096, 9), Some(expected));
        assert_eq!(parse("12 (a) S 1", 1e6, 100.0, 4096, 9), None);
        assert_eq!(parse("", 1e6, 100.0, 4096, 9), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn process_state_of_this_process_is_plausible() {
        let usage = usage().unwrap();
        assert!(usage.resident_bytes > 1 << 20 && usage.virtual_bytes >= usage.resident_bytes);
        assert!(usage.threads >= 1 && usage.open_files >= 3);
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        // The clock may have been set since the machine has started.
        assert!((now - usage.start_seconds).abs() < 1e6, "{} {now}", usage.start_seconds);
    }
}

//! Times the native CPU path for `benches/compare_torch.py`: one command per line of standard input, one line of JSON
//! with the seconds of every repetition on standard output. With `--cpu-time`, seconds that the threads were on a core
//! (Linux): what to compare with one thread on a machine that has other work.
//!
//! Commands: `conv CIN COUT KERNEL ROWS COLUMNS`.
#![allow(missing_docs, reason = "a benchmark has no interface")]

use std::{
    env,
    error::Error,
    fs,
    io::{BufRead, Write, stdin, stdout},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use tessera::{
    exec::cpu::Cpu,
    ops::{
        Conv2d, Ops, Shape,
        cases::Random,
        weights::{Param, Weights},
    },
};

/// Seconds since some moment: of the clock on the wall, or of all threads together on a core.
fn now(cpu_time: bool) -> Result<f64, Box<dyn Error>> {
    static START: OnceLock<Instant> = OnceLock::new();
    if !cpu_time {
        return Ok(START.get_or_init(Instant::now).elapsed().as_secs_f64());
    }
    let mut nanoseconds = 0;
    for task in fs::read_dir("/proc/self/task")? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let on_core = text.split_whitespace().next().ok_or("schedstat is empty")?;
        nanoseconds += on_core.parse::<u64>()?;
    }
    Ok(nanoseconds as f64 / 1e9)
}

/// Repeats `work` until both the time and the number are reached, after one run that warms caches and pools.
fn time(
    cpu_time: bool,
    mut work: impl FnMut() -> tessera::error::Result<()>,
) -> Result<Vec<f64>, Box<dyn Error>> {
    work()?;
    let (start, mut seconds) = (Instant::now(), Vec::new());
    while start.elapsed() < Duration::from_millis(300) || seconds.len() < 3 {
        let begin = now(cpu_time)?;
        work()?;
        seconds.push(now(cpu_time)? - begin);
    }
    Ok(seconds)
}

fn conv(cpu_time: bool, extents: &[usize]) -> Result<Vec<f64>, Box<dyn Error>> {
    let &[inputs, outputs, kernel, rows, columns] = extents else {
        return Err("conv takes 5 numbers".into());
    };
    let mut random = Random::new(1);
    let mut weights = Weights::default();
    let shape = vec![outputs, inputs, kernel, kernel];
    let data = random.values(shape.iter().product(), 0.0, 0.1);
    weights.insert("layer.weight", Param { shape, data });
    let data = random.values(outputs, 0.0, 1.0);
    weights.insert("layer.bias", Param { shape: vec![outputs], data });
    let mut cpu = Cpu::new(Arc::new(weights));
    let shape = Shape::new(1, rows, columns, inputs);
    let x = cpu.upload(shape, &random.values(shape.len(), 0.0, 1.0))?;
    let layer = Conv2d { name: "layer".into(), in_channels: inputs, out_channels: outputs, kernel };
    time(cpu_time, || cpu.conv2d(&x, &layer).map(|_| ()))
}

fn main() -> Result<(), Box<dyn Error>> {
    let cpu_time = env::args().any(|argument| argument == "--cpu-time");
    for line in stdin().lock().lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let seconds = match words.next() {
            Some("conv") => {
                conv(cpu_time, &words.map(str::parse).collect::<Result<Vec<usize>, _>>()?)?
            }
            Some(other) => return Err(format!("{other} is not a command").into()),
            None => continue,
        };
        writeln!(stdout(), "{}", serde_json::json!({ "command": line, "seconds": seconds }))?;
        stdout().flush()?;
    }
    Ok(())
}

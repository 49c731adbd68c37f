//! The built program's server as a child process, and a client of it.
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tessera::api::{
    self, CreateJobRequest, Job, JobSpec, JobState, job_event::Event,
    job_service_client::JobServiceClient,
};
use tonic::{Status, transport::Channel};

use super::fixture;

/// `tessera serve`, killed when the value goes.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
}

impl Server {
    /// Starts it on `jobs` with the model `net-a`, one thread and more `flags`; waits until it listens.
    pub(crate) fn start(jobs: &Path, flags: &[&str]) -> Self {
        Self::start_by(&[], jobs, flags)
    }

    /// Starts it by way of `wrapper`.
    pub(crate) fn start_by(wrapper: &[&str], jobs: &Path, flags: &[&str]) -> Self {
        let model = fixture("net-a.safetensors");
        let own = ["--threads", "1", "--model", model.to_str().unwrap()];
        Self::start_with(wrapper, jobs, &[&own, flags].concat())
    }

    /// Starts it with nothing but `flags`: the embedded model, the CPU with all cores.
    pub(crate) fn start_with(wrapper: &[&str], jobs: &Path, flags: &[&str]) -> Self {
        let mut own = Vec::new();
        for [flag, value] in [["--listen", "127.0.0.1:0"], ["--device", "cpu"]] {
            if !flags.contains(&flag) {
                own.extend([flag, value]);
            }
        }
        let program = env!("CARGO_BIN_EXE_tessera");
        let words: Vec<_> = wrapper.iter().copied().chain([program]).collect();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .args(["serve", "--jobs"])
            .arg(jobs)
            .args(own)
            .args(flags)
            .env("TESSERA_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ");
        let url = url.unwrap_or_else(|| panic!("the server said {line:?}")).to_owned();
        Self { child, url }
    }

    /// The process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a power cut would: SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop, and waits until it has.
    #[cfg(unix)]
    pub(crate) fn stop(mut self) -> std::process::ExitStatus {
        let asked = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(asked.success());
        self.child.wait().unwrap()
    }

    pub(crate) async fn client(&self) -> JobServiceClient<Channel> {
        let client = JobServiceClient::connect(self.url.clone()).await.unwrap();
        client.max_decoding_message_size(16 << 20)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request for a picture.
pub(crate) fn order(spec: JobSpec) -> CreateJobRequest {
    CreateJobRequest { spec: Some(spec), ..CreateJobRequest::default() }
}

/// A picture of `width` x `height` pixels in tiles of 64.
pub(crate) fn spec(seed: u64, width: u32, height: u32, steps: u32) -> JobSpec {
    JobSpec { seed, width, height, steps, tile_size: 64, ..JobSpec::default() }
}

pub(crate) async fn create(
    client: &mut JobServiceClient<Channel>,
    spec: JobSpec,
) -> Result<Job, Status> {
    Ok(client.create_job(order(spec)).await?.into_inner().job.unwrap())
}

/// The events after `after`, until the last one.
pub(crate) async fn watch(
    client: &mut JobServiceClient<Channel>,
    name: &str,
    after: u64,
) -> Result<Vec<api::JobEvent>, Status> {
    let request = api::WatchJobRequest {
        name: name.to_owned(),
        after_sequence: after,
        options: Some(api::StreamOptions { without_previews: true, ..Default::default() }),
    };
    let mut stream = client.watch_job(request).await?.into_inner();
    let mut events = Vec::new();
    while let Some(message) = stream.message().await? {
        events.push(message.event.unwrap());
    }
    Ok(events)
}

/// The state of the job `name`.
pub(crate) async fn state(client: &mut JobServiceClient<Channel>, name: &str) -> JobState {
    let request = api::GetJobRequest { name: name.to_owned() };
    client.get_job(request).await.unwrap().into_inner().job.unwrap().state()
}

/// Waits until `name` is in a state that `enough` accepts: looks at it after each event.
pub(crate) async fn wait(
    client: &mut JobServiceClient<Channel>,
    name: &str,
    enough: impl Fn(JobState) -> bool,
) -> JobState {
    let request = api::WatchJobRequest {
        name: name.to_owned(),
        options: Some(api::StreamOptions { without_previews: true, ..Default::default() }),
        ..Default::default()
    };
    let mut stream = client.watch_job(request).await.unwrap().into_inner();
    let watching = async {
        loop {
            let ended = stream.message().await.unwrap().is_none();
            let now = state(client, name).await;
            if enough(now) {
                return now;
            }
            assert!(!ended, "{name} ended as {now:?}");
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(180), watching).await;
    waited.unwrap_or_else(|_| panic!("{name} does not get on"))
}

/// The answer to a request by that `host`, headers and all.
pub(crate) fn answer(server: &Server, host: &str, path: &str) -> String {
    answer_to(server, &[("Host", host)], path)
}

/// The answer to a request with these headers, its own headers and all; bytes that are no text are replaced.
pub(crate) fn answer_to(server: &Server, headers: &[(&str, &str)], path: &str) -> String {
    let address = server.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let headers: String =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request = format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Status and body of the answer to a request.
pub(crate) fn get(server: &Server, path: &str) -> (u16, Vec<u8>) {
    let (head, body) = try_get(&server.url, "localhost", path).unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
}

/// Head and body of the answer of the server `url` to a request by that `host`; an error if it ends meanwhile.
pub(crate) fn try_get(url: &str, host: &str, path: &str) -> std::io::Result<(String, Vec<u8>)> {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok((String::from_utf8_lossy(&answer[..end]).into_owned(), answer[end + 4..].to_vec()))
}

/// A picture of noise, smooth enough for an encoder to keep something of it.
pub(crate) fn noise(seed: u64, width: u32, height: u32) -> image::RgbImage {
    let mut random = tessera::ops::testing::Random::new(seed);
    let values = random.values(width as usize * height as usize * 3, 128.0, 40.0);
    let samples = values.into_iter().map(|value| value.clamp(0.0, 255.0) as u8).collect();
    image::RgbImage::from_raw(width, height, samples).unwrap()
}

/// The picture that the tiles of `events` make, RGB with 8 bits; checks their CRC32C.
pub(crate) fn picture(events: &[api::JobEvent], width: usize, height: usize) -> Vec<u8> {
    let mut pixels = vec![0; 3 * width * height];
    let mut covered = 0;
    for event in events {
        let Some(Event::Tile(tile)) = &event.event else { continue };
        assert_eq!(crc32c::crc32c(&tile.data), tile.crc32c);
        let rect = tile.rect.unwrap();
        let row_len = 3 * rect.width as usize;
        for (row, from) in tile.data.chunks_exact(row_len).enumerate() {
            let at = 3 * ((rect.y as usize + row) * width + rect.x as usize);
            pixels[at..at + row_len].copy_from_slice(from);
        }
        covered += rect.width as usize * rect.height as usize;
    }
    assert_eq!(covered, width * height, "every pixel once");
    pixels
}

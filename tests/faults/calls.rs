//! Every kind of call while the server is killed: nothing acknowledged is lost, nothing deleted returns.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::common::server::{Server, noise, order, spec, try_get};
use tessera::{
    api::{self, JobSpec, JobState, edit_picture_request::Part},
    ops::testing::Random,
};
use tonic::{Code, Status};

use super::{Client, finish, names, records};

/// A job that a client has ordered, and what it knows of it.
#[derive(Clone, Debug, Default)]
struct Order {
    /// Its name, once the order was answered.
    name: Option<String>,
    cancelled: bool,
    cancel_tried: bool,
    deleted: bool,
    delete_tried: bool,
}

/// The orders by their seeds, which are all different.
type Orders = Arc<Mutex<Vec<Order>>>;

fn small_spec(seed: usize) -> JobSpec {
    let [width, height, steps] =
        [[64, 64, 40], [128, 96, 60], [32, 32, 2], [192, 128, 90]][seed % 4];
    spec(seed as u64, width, height, steps)
}

/// Sends the order `seed`: every seventh edits a picture.
async fn send(client: &mut Client, seed: usize) -> Result<String, Status> {
    let mut request = order(small_spec(seed));
    request.request_id = format!("order {seed}");
    let job = if seed.is_multiple_of(7) {
        let spec = request.spec.as_mut().unwrap();
        (spec.width, spec.height, spec.strength) = (0, 0, Some(0.3));
        let mut file = std::io::Cursor::new(Vec::new());
        let picture = noise(seed as u64, 96, 80);
        picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
        let message = |part| api::EditPictureRequest { part: Some(part) };
        let data: Vec<_> = file
            .into_inner()
            .chunks(4000)
            .map(|bytes| message(Part::Data(bytes.to_vec())))
            .collect();
        let parts = std::iter::once(message(Part::Job(request))).chain(data);
        client.edit_picture(tokio_stream::iter(parts)).await?.into_inner().job
    } else {
        client.create_job(request).await?.into_inner().job
    };
    Ok(job.unwrap().name)
}

/// Random calls until the server is gone or `most` have been made.
async fn use_server(mut client: Client, url: String, orders: Orders, seed: u64, most: usize) {
    let mut random = Random::new(seed);
    for _ in 0..most {
        let known: Vec<_> = orders
            .lock()
            .unwrap()
            .iter()
            .enumerate()
            .filter(|(_, order)| !order.delete_tried)
            .filter_map(|(seed, order)| Some((seed, order.name.clone()?)))
            .collect();
        let any = known.get(random.bits() as usize % known.len().max(1)).cloned();
        let call = random.bits() % 10;
        match (call, any) {
            (0..4, _) | (_, None) => {
                let seed = {
                    let mut orders = orders.lock().unwrap();
                    // An order without an answer is repeated.
                    let open = orders.iter().position(|order| order.name.is_none());
                    let next = if call == 0 { open } else { None };
                    next.unwrap_or_else(|| {
                        orders.push(Order::default());
                        orders.len() - 1
                    })
                };
                let Ok(name) = send(&mut client, seed).await else { return };
                let known = orders.lock().unwrap()[seed].name.replace(name.clone());
                assert!(known.is_none_or(|known| known == name), "two jobs of one order");
            }
            (4, Some((seed, name))) => {
                orders.lock().unwrap()[seed].cancel_tried = true;
                let Ok(answer) = client.cancel_job(api::CancelJobRequest { name }).await else {
                    return;
                };
                let state = answer.into_inner().job.unwrap().state();
                orders.lock().unwrap()[seed].cancelled = state == JobState::Cancelled;
            }
            (5 | 6, Some((seed, name))) => {
                orders.lock().unwrap()[seed].delete_tried = true;
                // Another task may have been faster.
                match client.delete_job(api::DeleteJobRequest { name }).await {
                    Err(status) if status.code() != Code::NotFound => return,
                    _ => orders.lock().unwrap()[seed].deleted = true,
                }
            }
            (_, Some((_, name))) => {
                let file = ["image.tiff", "image.png"][random.bits() as usize % 2];
                let (url, path) = (url.clone(), format!("/{name}/{file}"));
                let got = move || try_get(&url, "localhost", &path).map(drop);
                if tokio::task::spawn_blocking(got).await.unwrap().is_err() {
                    return;
                }
            }
        }
    }
}

/// Kills the server `kills` times while clients create, edit, cancel, delete and download.
async fn kill_during_all_calls(kills: usize) {
    let dir = tempfile::tempdir().unwrap();
    let (orders, mut random) = (Orders::default(), Random::new(7));
    let mut before = BTreeMap::<String, Vec<Vec<u8>>>::new();
    let (mut left, mut all_left) = (Vec::<PathBuf>::new(), 0);
    for kill in 0..=kills {
        let mut server = Server::start(dir.path(), &[]);
        let kept = left.iter().find(|path| path.exists());
        assert!(kept.is_none(), "kill {kill}: {kept:?} is left");
        let mut client = server.client().await;
        let listed =
            client.list_jobs(api::ListJobsRequest { page_size: 1000, ..Default::default() });
        let listed = listed.await.unwrap().into_inner().jobs;
        let mut by_seed = BTreeMap::new();
        for job in &listed {
            let seed = job.spec.as_ref().unwrap().seed as usize;
            assert!(by_seed.insert(seed, job).is_none(), "kill {kill}: two jobs of order {seed}");
        }
        for (seed, order) in orders.lock().unwrap().iter().enumerate() {
            let job = by_seed.get(&seed);
            let lost = order.name.is_some() && !order.delete_tried && job.is_none();
            assert!(!lost, "kill {kill}: order {seed} is lost");
            assert!(!(order.deleted && job.is_some()), "kill {kill}: order {seed} is back");
            let state = job.map(|job| job.state());
            let kept = !order.cancelled || state.is_none_or(|state| state == JobState::Cancelled);
            assert!(kept, "kill {kill}: order {seed} is {state:?}");
        }
        if kill == kills {
            break;
        }
        let tasks: Vec<_> = (0..3)
            .map(|_| {
                let (client, url) = (client.clone(), server.url.clone());
                tokio::spawn(use_server(client, url, orders.clone(), random.bits(), 8))
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(random.bits() % 150)).await;
        server.kill();
        for task in tasks {
            task.await.unwrap();
        }
        left = unfinished(dir.path());
        all_left += left.len();
        let now = records(dir.path());
        for (job, known) in &before {
            let kept = now.get(job).is_none_or(|later| later.starts_with(known));
            assert!(kept, "kill {kill}: {job} lost what it had announced");
        }
        before = now;
    }

    eprintln!("{kills} kills left {all_left} unfinished files and directories; all were removed");

    // The other jobs end, with the bytes of an undisturbed server.
    let orders = orders.lock().unwrap().clone();
    let left: Vec<_> = (0..orders.len())
        .filter(|&seed| orders[seed].name.is_some() && !orders[seed].delete_tried)
        .collect();
    assert!(left.len() > kills / 4, "{} orders are left", left.len());
    let calm = tempfile::tempdir().unwrap();
    let server = Server::start(calm.path(), &[]);
    let mut client = server.client().await;
    for &seed in &left {
        send(&mut client, seed).await.unwrap();
    }
    drop(server);
    let (found, expected) = (finish(dir.path()), finish(calm.path()));
    for seed in left {
        match found.get(&(seed as u64)) {
            Some(file) => assert!(*file == expected[&(seed as u64)], "order {seed}"),
            None => assert!(orders[seed].cancel_tried, "order {seed} has no picture"),
        }
    }
}

/// Files and directories that a kill has left unfinished: their names begin with a dot.
fn unfinished(directory: &Path) -> Vec<PathBuf> {
    let dotted = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with('.');
    let inside = |job: PathBuf| {
        let files = if job.is_dir() { names(&job) } else { Vec::new() };
        files.into_iter().map(move |file| job.join(file)).filter(dotted)
    };
    let jobs = names(directory).into_iter().map(|name| directory.join(name));
    let (mut left, jobs): (Vec<_>, Vec<_>) = jobs.partition(dotted);
    left.extend(jobs.into_iter().flat_map(inside));
    left
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_server_keeps_every_promise_of_every_call() {
    kill_during_all_calls(15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes twenty times as long as the test before"]
async fn server_killed_300_times_keeps_every_promise_of_every_call() {
    kill_during_all_calls(300).await;
}

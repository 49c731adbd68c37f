//! Access to the service: tokens, owners of jobs, host names, addresses, TLS files.

use prost::Message as _;
use tessera::api::{self, job_service_client::JobServiceClient};
use tonic::{Code, metadata::MetadataValue, transport::Channel};

use crate::common::{
    command::Dir,
    server::{Server, answer, answer_to, create, order, spec},
};

/// SHA-256 of the tokens "foo", "bar" and "baz".
const HASHES: [&str; 3] = [
    "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
    "fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9",
    "baa5a0964d3320fbc0c6a922140453c8513ea24ab8fd0577034804a967248096",
];

#[tokio::test]
async fn dns_rebinding_gets_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--host", "pictures.example"]);
    for path in ["/", "/metrics", "/jobs/x/image.dzi"] {
        for host in ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""] {
            let line = answer(&server, host, path);
            assert!(line.starts_with("HTTP/1.1 421"), "{path} by {host:?}: {line}");
        }
        for host in ["localhost", "127.0.0.1:1", "[::1]:1", "pictures.example"] {
            let line = answer(&server, host, path);
            assert!(!line.starts_with("HTTP/1.1 421"), "{path} by {host:?}: {line}");
        }
    }
    for (origin, code) in
        [("http://evil.example", Some(Code::PermissionDenied)), ("http://pictures.example", None)]
    {
        let endpoint = Channel::from_shared(server.url.clone()).unwrap();
        let channel = endpoint.origin(origin.parse().unwrap()).connect().await.unwrap();
        let mut client = JobServiceClient::new(channel);
        let answer = client.list_jobs(api::ListJobsRequest::default()).await;
        assert_eq!(answer.err().map(|status| status.code()), code, "{origin}");
    }
}

#[tokio::test]
async fn tokens_are_checked_and_have_their_own_limits() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens");
    // SHA-256 of "foo" and of "bar".
    std::fs::write(
        &tokens,
        "anna 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae 1 4096\n\
         ben fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9\n",
    )
    .unwrap();
    let jobs = dir.path().join("jobs");
    let server = Server::start(&jobs, &["--tokens", tokens.to_str().unwrap()]);
    let channel = Channel::from_shared(server.url.clone()).unwrap().connect().await.unwrap();
    let with = |token: Option<&str>| {
        let value =
            token.map(|token| -> MetadataValue<_> { format!("Bearer {token}").parse().unwrap() });
        JobServiceClient::with_interceptor(
            channel.clone(),
            move |mut request: tonic::Request<()>| {
                if let Some(value) = &value {
                    request.metadata_mut().insert("authorization", value.clone());
                }
                Ok(request)
            },
        )
    };
    for token in [None, Some(""), Some("fo"), Some("foo bar")] {
        let status = with(token).create_job(order(spec(1, 32, 32, 1))).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{token:?}");
    }
    with(Some("foo")).create_job(order(spec(1, 64, 64, 1))).await.unwrap();
    let status = with(Some("foo")).create_job(order(spec(1, 64, 80, 1))).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("5120") && status.message().contains("4096"), "{status}");
    with(Some("bar")).create_job(order(spec(1, 64, 80, 1))).await.unwrap();
}

/// A job exists for its owner and for admins only: for every method and every path that names one.
#[tokio::test]
async fn jobs_belong_to_the_client_that_created_them() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, tokens) = (dir.path().join("jobs"), dir.path().join("tokens"));
    let [anna, ben, root] = HASHES;
    std::fs::write(&tokens, format!("anna {anna}\nben {ben} 9\nroot {root} admin\n")).unwrap();
    let mut server = Server::start(&jobs, &[]);
    let early = create(&mut server.client().await, spec(0, 32, 32, 1)).await.unwrap();
    assert_eq!(early.owner, "");
    server.kill();

    let server = Server::start(&jobs, &["--tokens", tokens.to_str().unwrap()]);
    let channel = Channel::from_shared(server.url.clone()).unwrap().connect().await.unwrap();
    let with = |token: &str| {
        let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
        let intercept = move |mut request: tonic::Request<()>| {
            request.metadata_mut().insert("authorization", value.clone());
            Ok(request)
        };
        JobServiceClient::with_interceptor(channel.clone(), intercept)
    };
    // The same request_id of two clients is no conflict.
    let ordered = async |token: &str, seed: u64| {
        let mut request = order(spec(seed, 32, 32, 1));
        request.request_id = format!("id {}", if seed < 20 { seed % 10 } else { seed });
        with(token).create_job(request).await.unwrap().into_inner().job.unwrap()
    };
    let (hers, his) = (ordered("foo", 1).await, ordered("bar", 11).await);
    assert_ne!(hers.name, his.name);
    assert_eq!(hers.name, ordered("foo", 1).await.name);
    assert_eq!((hers.owner.as_str(), his.owner.as_str()), ("anna", "ben"));
    for (token, visible) in [
        ("foo", vec![&hers.name]),
        ("bar", vec![&his.name]),
        ("baz", vec![&early.name, &hers.name, &his.name]),
    ] {
        // One a page: those of others leave no gaps.
        let (mut listed, mut page_token) = (Vec::new(), String::new());
        for _ in 0..=visible.len() {
            let request = api::ListJobsRequest { page_size: 1, page_token, ..Default::default() };
            let page = with(token).list_jobs(request).await.unwrap().into_inner();
            listed.extend(page.jobs.into_iter().map(|job| job.name));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(listed.iter().collect::<Vec<_>>(), visible, "{token}");
    }

    // Every method whose request has a name, the same field in all.
    let files = prost_types::FileDescriptorSet::decode(api::DESCRIPTORS).unwrap().file;
    let takes_a_name = |method: &prost_types::MethodDescriptorProto| {
        let mut messages = files.iter().flat_map(|file| &file.message_type);
        let input = method.input_type().rsplit('.').next();
        let input = messages.find(|message| Some(message.name()) == input).unwrap();
        input.field.iter().any(|field| field.name() == "name" && field.number() == 1)
    };
    let services = files.iter().flat_map(|file| &file.service);
    let service = services.into_iter().find(|service| service.name() == "JobService").unwrap();
    let methods: Vec<_> = service.method.iter().filter(|method| takes_a_name(method)).collect();
    assert!(methods.len() >= 7, "{methods:?}");
    let call = async |method: &str, token: &str, name: &str| {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let mut request = tonic::Request::new(api::GetJobRequest { name: name.to_owned() });
        let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        let path = format!("/tessera.v1.JobService/{method}").parse().unwrap();
        let codec = tonic_prost::ProstCodec::<_, ()>::default();
        match grpc.server_streaming(request, path, codec).await {
            Ok(answer) => answer.into_inner().message().await.err(),
            Err(status) => Some(status),
        }
        .map_or(Code::Ok, |status| status.code())
    };
    for (i, method) in methods.iter().enumerate() {
        let method = method.name();
        for (token, seed) in [("foo", 20), ("baz", 40)] {
            // Cancelled and deleted on the way.
            let job = ordered("foo", seed + i as u64).await;
            assert_eq!(call(method, "bar", &job.name).await, Code::NotFound, "{method}");
            assert_eq!(call(method, "foo", &early.name).await, Code::NotFound, "{method}");
            assert_ne!(call(method, token, &job.name).await, Code::NotFound, "{method}, {token}");
        }
    }

    wait_with(&mut with("foo"), &hers.name).await;
    let get = |token: &str, path: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("Host", "localhost"), ("Authorization", bearer.as_str())];
        let answer = answer_to(&server, &headers, &format!("/{}{path}", hers.name));
        answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    for path in [
        "/image.dzi",
        "/image_files/5/0_0.png",
        "/iiif",
        "/iiif/info.json",
        "/iiif/full/max/0/default.jpg",
        "/preview.png",
        "/image.tiff",
        "/image.png",
    ] {
        assert_eq!(get("bar", path), 404, "{path}");
        for token in ["foo", "baz"] {
            assert!((200..400).contains(&get(token, path)), "{path}, {token}");
        }
    }
}

/// Waits until the job has ended.
async fn wait_with<T>(client: &mut JobServiceClient<T>, name: &str)
where
    T: tonic::client::GrpcService<tonic::body::Body>,
    T::Error: Into<tonic::codegen::StdError>,
    T::ResponseBody: tonic::codegen::Body<Data = tonic::codegen::Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<tonic::codegen::StdError> + Send,
{
    let request = api::WatchJobRequest { name: name.to_owned(), ..Default::default() };
    let mut stream = client.watch_job(request).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
}

#[test]
fn listen_beyond_loopback_needs_tls_or_insecure() {
    let serve = ["serve", "--listen", "0.0.0.0:0", "--jobs", "."];
    Dir::new().run(&serve).ended(2, &["--insecure"]);
}

/// A TLS file that can't be used is named together with the problem, before any job is opened; those of the client too.
#[test]
fn tls_files_that_are_unusable_are_named_with_the_problem() {
    use rcgen::{CertificateParams, KeyPair};
    let dir = Dir::new();
    let write = |name: &str, content: &[u8]| std::fs::write(dir.join(name), content).unwrap();
    let made = || {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap();
        (certificate.self_signed(&key).unwrap(), key)
    };
    let ((cert, key), (other, other_key)) = (made(), made());
    write("cert.pem", cert.pem().as_bytes());
    write("key.pem", key.serialize_pem().as_bytes());
    write("other.key", other_key.serialize_pem().as_bytes());
    write("chain.pem", (cert.pem() + &other.pem()).as_bytes());
    write("empty.pem", b"\n");
    write("text.pem", b"open sesame\n");
    write("cert.der", cert.der());
    write("short.pem", &cert.pem().as_bytes()[..200]);
    write("damaged.pem", b"-----BEGIN CERTIFICATE-----\nMAAx\n-----END CERTIFICATE-----\n");
    write(
        "request.pem",
        b"-----BEGIN CERTIFICATE REQUEST-----\nMAAx\n-----END CERTIFICATE REQUEST-----\n",
    );
    let encrypted = "ENCRYPTED PRIVATE KEY-----\nMAAx\n";
    let encrypted = format!("-----BEGIN {encrypted}-----END ENCRYPTED PRIVATE KEY-----\n");
    write("encrypted.key", encrypted.as_bytes());
    let headers = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMAAx";
    let old =
        format!("-----BEGIN RSA PRIVATE KEY-----\n{headers}\n-----END RSA PRIVATE KEY-----\n");
    write("encrypted-old.key", old.as_bytes());
    let key_text = "-----BEGIN PRIVATE KEY-----\nMAAx\n-----END PRIVATE KEY-----\n";
    write("damaged.key", key_text.as_bytes());
    let serve = |cert: &str, key: &str, more: &[&str], words: &[&str]| {
        let flags = ["serve", "--listen", "127.0.0.1:0", "--jobs", "jobs"];
        let files = ["--tls-cert", cert, "--tls-key", key];
        dir.refused(&[&flags[..], &files, more].concat(), words);
    };
    for (cert, key, words) in [
        ("none.pem", "key.pem", ["tls_cert", "none.pem", "No such file"]),
        ("empty.pem", "key.pem", ["tls_cert", "empty.pem", "it is empty"]),
        ("text.pem", "key.pem", ["tls_cert", "text.pem", "it is not PEM"]),
        ("cert.der", "key.pem", ["tls_cert", "cert.der", "it is DER"]),
        ("short.pem", "key.pem", ["tls_cert", "short.pem", "no END line"]),
        ("damaged.pem", "key.pem", ["tls_cert", "damaged.pem", "certificate number 1 is damaged"]),
        ("request.pem", "key.pem", ["tls_cert", "request.pem", "no certificate"]),
        ("key.pem", "cert.pem", ["tls_cert", "key.pem", "swapped"]),
        ("cert.pem", "cert.pem", ["tls_key", "cert.pem", "swapped"]),
        ("cert.pem", "empty.pem", ["tls_key", "empty.pem", "it is empty"]),
        ("cert.pem", "encrypted.key", ["tls_key", "encrypted.key", "its key is encrypted"]),
        ("cert.pem", "encrypted-old.key", ["tls_key", "encrypted-old.key", "its key is encrypted"]),
        ("cert.pem", "damaged.key", ["tls_key", "damaged.key", "damaged"]),
        ("cert.pem", "request.pem", ["tls_key", "request.pem", "no private key"]),
        (
            "cert.pem",
            "other.key",
            ["tls_key", "other.key", "does not belong to the certificate in cert.pem"],
        ),
        ("chain.pem", "other.key", ["tls_cert", "chain.pem", "certificate number 2"]),
    ] {
        serve(cert, key, &[], &words);
    }
    serve(
        "cert.pem",
        "key.pem",
        &["--client-ca", "key.pem"],
        &["client_ca", "key.pem", "no certificate"],
    );
    let ask = ["jobs", "--server", "https://localhost:1"];
    let client = |flags: &[&str], words: &[&str]| dir.refused(&[&ask, flags].concat(), words);
    client(&["--ca", "text.pem"], &["ca", "text.pem", "it is not PEM"]);
    client(&["--cert", "key.pem", "--key", "cert.pem"], &["cert", "key.pem", "swapped"]);
    client(&["--cert", "cert.pem", "--key", "other.key"], &["key", "other.key", "does not belong"]);
}

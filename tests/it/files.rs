//! Picture files: what is written is what is read, whole or not at all.

use std::{
    fs::{self, File},
    io::{self, BufReader},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, UNIX_EPOCH},
};

use serde_json::{Map, Value, json};
use tessera::{
    engine::encode::LIMITS,
    error::{Detail, Error, Kind, Result},
    geometry::Rect,
    image_in,
    image_out::{
        self, Bits, CLASSIC_LIMIT, Compression, Metadata, PixelSource, RawPixels, TiffOptions,
    },
    store::{self, BackingFile},
};
use tiff::{
    decoder::{Decoder, DecodingResult, Limits},
    tags::Tag,
};

/// A picture with smooth parts and noise, from a seed, in the machine's byte order.
struct Picture {
    width: u32,
    height: u32,
    bits: Bits,
    bytes: Vec<u8>,
}

impl Picture {
    fn new(width: u32, height: u32, bits: Bits) -> Self {
        let mut state = u64::from(width) << 32 | u64::from(height) | 1 << 63;
        let mut noise = || {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 48) as u16
        };
        let mut samples = Vec::new();
        for y in 0..height {
            for x in 0..width {
                for c in 0..3 {
                    let smooth = (x * 37 + y * 91 + c * 20_000) as u16;
                    samples.push(if (x / 64 + y / 64) % 2 == 0 { smooth } else { noise() });
                }
            }
        }
        let bytes = match bits {
            Bits::Eight => samples.iter().map(|s| (s >> 8) as u8).collect(),
            Bits::Sixteen => samples.iter().flat_map(|s| s.to_ne_bytes()).collect(),
        };
        Self { width, height, bits, bytes }
    }

    fn source(&self) -> Result<RawPixels<'_>> {
        RawPixels::new(&self.bytes, self.width, self.height, self.bits)
    }

    /// All samples, 8 bits as they are.
    fn samples(&self) -> Vec<u16> {
        match self.bits {
            Bits::Eight => self.bytes.iter().map(|&b| b.into()).collect(),
            Bits::Sixteen => {
                self.bytes.chunks_exact(2).map(|b| u16::from_ne_bytes([b[0], b[1]])).collect()
            }
        }
    }

    /// The next level of the pyramid by its definition: means of 2x2, the last row and column
    /// counted twice at odd edges.
    fn overview(&self) -> Self {
        let samples = self.samples();
        let (width, height) = (self.width.div_ceil(2), self.height.div_ceil(2));
        let at = |x: u32, y: u32, c: u32| {
            let (x, y) = (x.min(self.width - 1), y.min(self.height - 1));
            u32::from(samples[((y * self.width + x) * 3 + c) as usize])
        };
        let mut bytes = Vec::new();
        for y in 0..height {
            for x in 0..width {
                for c in 0..3 {
                    let (x, y) = (2 * x, 2 * y);
                    let sum = at(x, y, c) + at(x + 1, y, c) + at(x, y + 1, c) + at(x + 1, y + 1, c);
                    let mean = ((sum + 2) / 4) as u16;
                    match self.bits {
                        Bits::Eight => bytes.push(mean as u8),
                        Bits::Sixteen => bytes.extend(mean.to_ne_bytes()),
                    }
                }
            }
        }
        Self { width, height, bits: self.bits, bytes }
    }
}

fn metadata() -> Metadata {
    let Value::Object(receipt) = json!({
        "seed": 7, "model_sha256": "5d41…", "sampler": "heun", "steps": 18, "device": "CPU <test>",
        "size": [1000, 600], "tile": 256,
    }) else {
        return Metadata {
            description: String::new(),
            created: Some(UNIX_EPOCH),
            receipt: Map::new(),
        };
    };
    Metadata {
        description: "Seed 7 & Ångström".to_owned(),
        created: Some(UNIX_EPOCH + Duration::from_secs(1_767_225_600)),
        receipt,
    }
}

/// Decodes the level that `decoder` stands at.
fn level(decoder: &mut Decoder<BufReader<File>>) -> tiff::TiffResult<((u32, u32), Vec<u16>)> {
    let samples = match decoder.read_image()? {
        DecodingResult::U8(samples) => samples.into_iter().map(u16::from).collect(),
        DecodingResult::U16(samples) => samples,
        other => return Err(io::Error::other(format!("{other:?}")).into()),
    };
    Ok((decoder.dimensions()?, samples))
}

fn open(path: &Path) -> tiff::TiffResult<Decoder<BufReader<File>>> {
    Ok(Decoder::new(BufReader::new(File::open(path)?))?.with_limits(Limits::unlimited()))
}

const SIZES: [(u32, u32); 7] =
    [(1, 1), (255, 257), (256, 256), (257, 1), (1, 600), (1000, 600), (2049, 1025)];

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

#[test]
fn tiff_levels_read_back_every_pixel() -> Outcome {
    let directory = tempfile::tempdir()?;
    for (width, height) in SIZES {
        for bits in [Bits::Eight, Bits::Sixteen] {
            let forms = [CLASSIC_LIMIT, 0].into_iter().flat_map(|classic_limit| {
                [Compression::Deflate, Compression::None].map(|compression| TiffOptions {
                    compression,
                    classic_limit,
                    ..TiffOptions::default()
                })
            });
            for options in forms {
                let limit = options.classic_limit;
                let name = format!("{width}x{height}, {bits:?}, {options:?}");
                let mut expected = Picture::new(width, height, bits);
                let path = directory.path().join("picture.tiff");
                image_out::write_tiff(&path, &expected.source()?, &metadata(), options)?;

                let version = fs::read(&path)?[2];
                assert_eq!(version, if limit == 0 { 43 } else { 42 }, "{name}");
                let mut decoder = open(&path)?;
                loop {
                    let (size, samples) = level(&mut decoder)?;
                    assert_eq!(size, (expected.width, expected.height), "{name}");
                    assert!(samples == expected.samples(), "{name}: level {size:?} differs");
                    let subfile = decoder.find_tag_unsigned::<u32>(Tag::NewSubfileType)?;
                    assert_eq!(subfile.unwrap_or(0), u32::from(size != (width, height)), "{name}");
                    let is_last = size.0.max(size.1) <= 256;
                    assert_eq!(decoder.more_images(), !is_last, "{name}: level {size:?}");
                    if is_last {
                        break;
                    }
                    decoder.next_image()?;
                    expected = expected.overview();
                }
            }
        }
    }
    Ok(())
}

/// The largest level; `tests/python/check_tiff.py` reads the others.
#[test]
fn tiff_in_zstd_has_the_pixels_of_one_in_deflate() -> Outcome {
    let directory = tempfile::tempdir()?;
    for (width, height) in SIZES {
        for bits in [Bits::Eight, Bits::Sixteen] {
            let picture = Picture::new(width, height, bits);
            let [none, zstd, deflate] =
                [Compression::None, Compression::Zstd, Compression::Deflate].map(|compression| {
                    let path = directory.path().join(compression.name()).with_extension("tiff");
                    let options = TiffOptions { compression, ..TiffOptions::default() };
                    image_out::write_with(&path, &picture.source()?, &metadata(), options)?;
                    let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
                    Ok::<_, Error>((bytes.len(), image_in::read(&path, LIMITS)?))
                });
            let ((none, _), (zstd, read), (_, expected)) = (none?, zstd?, deflate?);
            assert!(zstd < none, "{width}x{height}, {bits:?}: {zstd} of {none} bytes");
            assert!(read == expected, "{width}x{height}, {bits:?}");
        }
    }
    Ok(())
}

#[test]
fn png_reads_back_every_pixel() -> Outcome {
    let directory = tempfile::tempdir()?;
    for (width, height) in SIZES {
        for bits in [Bits::Eight, Bits::Sixteen] {
            let picture = Picture::new(width, height, bits);
            let path = directory.path().join("picture.png");
            image_out::write(&path, &picture.source()?, &metadata())?;
            let samples: Vec<u16> = match image::open(&path)? {
                image::DynamicImage::ImageRgb8(p) => {
                    p.into_raw().into_iter().map(u16::from).collect()
                }
                image::DynamicImage::ImageRgb16(p) => p.into_raw(),
                other => return Err(format!("{:?}", other.color()).into()),
            };
            assert!(samples == picture.samples(), "{width}x{height}, {bits:?}");
        }
    }
    Ok(())
}

#[test]
fn tiff_tags_hold_program_time_profile_and_metadata() -> Outcome {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("picture.tif");
    image_out::write(&path, &Picture::new(600, 300, Bits::Eight).source()?, &metadata())?;
    let mut decoder = open(&path)?;
    assert_eq!(decoder.get_tag_ascii_string(Tag::Software)?, Metadata::software());
    assert_eq!(decoder.get_tag_ascii_string(Tag::DateTime)?, "2026:01:01 00:00:00");
    assert_eq!(decoder.get_tag_ascii_string(Tag::ImageDescription)?, "Seed 7 & ?ngstr?m");
    assert_eq!(decoder.get_tag_u32(Tag::TileWidth)?, 256);
    assert_eq!(decoder.get_tag_u32(Tag::TileLength)?, 256);
    assert_eq!(decoder.get_tag_u32(Tag::Compression)?, 8);
    assert_eq!(decoder.get_tag_u32(Tag::Predictor)?, 2);
    assert_eq!(decoder.get_tag_u8_vec(Tag::IccProfile)?, image_out::srgb_profile()?);
    let xmp = String::from_utf8(decoder.get_tag_u8_vec(Tag::Unknown(700))?)?;
    assert!(xmp.contains("<t:device>CPU &lt;test&gt;</t:device>"), "{xmp}");
    assert!(xmp.contains("Seed 7 &amp; Ångström"), "{xmp}");
    let json = xmp.split("<t:receipt>").nth(1).and_then(|rest| rest.split("</t:receipt>").next());
    let json = json.unwrap_or_default().replace("&lt;", "<").replace("&gt;", ">");
    assert_eq!(serde_json::from_str::<Map<String, Value>>(&json)?, metadata().receipt);
    Ok(())
}

#[test]
fn png_chunks_hold_program_time_colours_and_metadata() -> Outcome {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("picture.PNG");
    image_out::write(&path, &Picture::new(10, 10, Bits::Eight).source()?, &metadata())?;
    let reader = png::Decoder::new(BufReader::new(File::open(&path)?)).read_info()?;
    let info = reader.info();
    assert_eq!(info.srgb, Some(png::SrgbRenderingIntent::Perceptual));
    let text: Vec<_> = info.uncompressed_latin1_text.iter().map(|t| t.text.as_str()).collect();
    assert_eq!(text, [Metadata::software(), "2026-01-01T00:00:00Z", "Seed 7 & ?ngstr?m"]);
    assert_eq!(info.utf8_text[0].keyword, "XML:com.adobe.xmp");
    assert!(info.utf8_text[0].get_text()?.contains("<t:seed>7</t:seed>"));
    Ok(())
}

#[test]
fn threads_do_not_change_the_bytes_of_a_file() -> Outcome {
    let directory = tempfile::tempdir()?;
    let picture = Picture::new(1500, 700, Bits::Eight);
    let mut files = Vec::new();
    for threads in [1, 5] {
        let path = directory.path().join(format!("{threads}.tiff"));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        pool.install(|| image_out::write(&path, &picture.source()?, &metadata()))?;
        files.push(fs::read(&path)?);
    }
    assert!(files[0] == files[1]);
    Ok(())
}

/// A picture whose reading fails after some areas.
struct Failing {
    left: AtomicU32,
    kind: Kind,
}

impl PixelSource for Failing {
    fn width(&self) -> u32 {
        3000
    }

    fn height(&self) -> u32 {
        2000
    }

    fn bits(&self) -> Bits {
        Bits::Eight
    }

    fn read(&self, area: Rect, buffer: &mut [u8]) -> Result<()> {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        match left {
            // Noise, so that some of it has reached the disk when the failure comes.
            Ok(_) => {
                let noise = Picture::new(area.width as u32, area.height as u32, Bits::Eight);
                buffer.copy_from_slice(&noise.bytes);
                Ok(())
            }
            Err(_) => Err(Error::new(self.kind, Detail::Cancelled { operation: "reading".into() })),
        }
    }
}

/// Names of all files in `directory`.
fn names(directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(directory)?.map(|entry| entry.map(|e| e.file_name().into())).collect()
}

#[test]
fn failure_midway_leaves_no_file_and_keeps_the_old_one() -> Outcome {
    let directory = tempfile::tempdir()?;
    for (name, left) in [("picture.tiff", 70), ("picture.png", 1500)] {
        let path = directory.path().join(name);
        for old in [None, Some("old")] {
            if let Some(old) = old {
                fs::write(&path, old)?;
            }
            let source = Failing { left: left.into(), kind: Kind::Cancelled };
            let error = image_out::write(&path, &source, &metadata()).err().ok_or("no error")?;
            assert_eq!(error.kind(), Kind::Cancelled, "the source's own error is passed on");
            let there = names(directory.path())?;
            match old {
                None => assert!(there.is_empty(), "{there:?}"),
                Some(old) => {
                    assert_eq!(there, [PathBuf::from(name)]);
                    assert_eq!(fs::read_to_string(&path)?, old);
                    fs::remove_file(&path)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn output_that_can_not_be_written_is_refused_before_the_work() -> Outcome {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("new.tiff");
    store::preflight(&path)?;
    assert!(names(directory.path())?.is_empty(), "the test of the directory leaves nothing");
    let refused = |path: &Path| {
        let error = store::preflight(path).err();
        error.map(|e| (e.kind(), e.to_string())).ok_or("not refused")
    };
    for (path, says) in [
        (directory.path().to_owned(), "it is a directory"),
        (directory.path().join("missing/new.tiff"), "existing directory"),
        (path.join(".."), "file name"),
        (PathBuf::from("/"), "it is a directory"),
        (PathBuf::new(), "file name"),
    ] {
        let (kind, message) = refused(&path)?;
        assert_eq!(kind, Kind::InvalidArgument, "{message}");
        assert!(message.contains(says), "{message}");
    }
    fs::write(directory.path().join("file"), "")?;
    let (kind, message) = refused(&directory.path().join("file/new.tiff"))?;
    assert_eq!(kind, Kind::InvalidArgument, "{message}");
    if cfg!(unix) {
        let (kind, message) = refused(Path::new("/dev/null"))?;
        assert_eq!(kind, Kind::InvalidArgument, "{message}");
        assert!(message.contains("regular file"), "{message}");
    }
    if cfg!(target_os = "linux") {
        // A directory that not even root can make a file in.
        let (kind, message) = refused(Path::new("/proc/new.tiff"))?;
        assert_eq!(kind, Kind::Io, "{message}");
        assert!(message.contains("can't create a file in /proc"), "{message}");
    }
    for name in ["picture", "picture.jpeg", ".tiff"] {
        let picture = Picture::new(4, 4, Bits::Eight);
        let error = image_out::write(Path::new(name), &picture.source()?, &metadata()).err();
        assert_eq!(error.map(|e| e.kind()), Some(Kind::InvalidArgument), "{name}");
    }
    Ok(())
}

#[cfg(unix)]
#[test]
fn new_files_obey_the_umask_and_links_are_followed() -> Outcome {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let directory = tempfile::tempdir()?;
    let (plain, target) = (directory.path().join("plain"), directory.path().join("target.png"));
    fs::write(&plain, "")?;
    fs::write(&target, "old")?;
    let link = directory.path().join("link.png");
    symlink(&target, &link)?;
    image_out::write(&link, &Picture::new(4, 4, Bits::Eight).source()?, &metadata())?;
    assert!(fs::symlink_metadata(&link)?.is_symlink());
    assert_eq!(image::open(&target)?.width(), 4);
    let mode = |path| fs::metadata(path).map(|m| m.permissions().mode());
    assert_eq!(mode(&target)?, mode(&plain)?);
    Ok(())
}

/// Names the directory without room to the test below.
const FULL_DIRECTORY: &str = "TESSERA_TEST_FULL_DIRECTORY";

#[test]
#[ignore = "run by disk_full_is_an_error, in a directory that has room for less than 1 MiB"]
fn in_a_full_directory() -> Outcome {
    let directory = PathBuf::from(std::env::var_os(FULL_DIRECTORY).ok_or("no directory")?);
    let (path, old) = (directory.join("new.tiff"), directory.join("old.png"));
    fs::write(&old, "old")?;
    let is_io = |result: Result<()>, says: &str| match result {
        Err(error) if error.kind() == Kind::Io && error.to_string().contains(says) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    is_io(BackingFile::create(&directory, 4 << 20).map(drop), "4194304 bytes")?;
    let picture = Picture::new(1000, 600, Bits::Sixteen);
    is_io(image_out::write(&path, &picture.source()?, &metadata()), "new.tiff")?;
    is_io(image_out::write(&old, &picture.source()?, &metadata()), "old.png")?;
    assert_eq!(names(&directory)?, [PathBuf::from("old.png")]);
    assert_eq!(fs::read_to_string(&old)?, "old");
    // There was room: for what fits.
    BackingFile::create(&directory, 4096)?.bytes_mut().fill(1);
    Ok(())
}

/// Runs the test above in a process of its own, limited by `shell` before it starts, in
/// `directory`.
#[cfg(unix)]
fn run_in_full_directory(wrapper: &[&str], shell: &str, directory: &Path) -> Outcome {
    let mut words = wrapper.iter().copied().chain(["sh", "-c"]);
    let output = std::process::Command::new(words.next().ok_or("no command")?)
        .args(words)
        .arg(format!("{shell} && exec \"$@\""))
        .arg("sh")
        .arg(std::env::current_exe()?)
        .args(["--ignored", "--exact", "files::in_a_full_directory"])
        .env(FULL_DIRECTORY, directory)
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && said.contains("1 passed") {
        return Ok(());
    }
    Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr)).into())
}

#[cfg(unix)]
#[test]
fn disk_full_is_an_error() -> Outcome {
    // The system's limit on the length of a file: 1024 blocks of 512 or 1024 bytes.
    let directory = tempfile::tempdir()?;
    run_in_full_directory(&[], "trap '' XFSZ; ulimit -f 1024", directory.path())?;

    // A file system that is full, seen by the process alone.
    let directory = tempfile::tempdir()?;
    let mount = "mount -t tmpfs -o size=1m tmpfs \"$TESSERA_TEST_FULL_DIRECTORY\"";
    let may_mount = |wrapper: &&[&str]| {
        std::process::Command::new(wrapper[0])
            .args(&wrapper[1..])
            .args(["sh", "-c", mount])
            .env(FULL_DIRECTORY, directory.path())
            .output()
            .is_ok_and(|output| output.status.success())
    };
    let wrappers = [&["unshare", "-m"][..], &["unshare", "-Urm"]];
    match wrappers.into_iter().find(may_mount) {
        Some(wrapper) => run_in_full_directory(wrapper, mount, directory.path()),
        None => {
            eprintln!("not tested: a full file system (neither root nor user namespaces here)");
            Ok(())
        }
    }
}

/// Files for `tests/python/check_tiff.py`: each TIFF with its PNG twin.
#[test]
fn samples_for_other_readers_are_written() -> Outcome {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("files");
    fs::create_dir_all(&directory)?;
    let classic = TiffOptions::default();
    let big = TiffOptions { classic_limit: 0, ..classic };
    let packed = |compression| TiffOptions { compression, ..classic };
    for (name, (width, height), bits, options) in [
        ("tiny-8", (1, 1), Bits::Eight, classic),
        ("odd-8", (1001, 599), Bits::Eight, classic),
        ("odd-16", (777, 1025), Bits::Sixteen, classic),
        ("big-8", (513, 300), Bits::Eight, big),
        ("big-16", (2049, 256), Bits::Sixteen, big),
        ("wide-8", (2048, 1024), Bits::Eight, classic),
        ("zstd-8", (777, 513), Bits::Eight, packed(Compression::Zstd)),
        ("zstd-16", (300, 257), Bits::Sixteen, packed(Compression::Zstd)),
        ("cog-8", (1001, 599), Bits::Eight, TiffOptions { cloud_optimized: true, ..classic }),
        ("cog-16", (777, 513), Bits::Sixteen, TiffOptions { cloud_optimized: true, ..big }),
        ("none-8", (777, 513), Bits::Eight, packed(Compression::None)),
        ("none-16", (300, 257), Bits::Sixteen, packed(Compression::None)),
    ] {
        let picture = Picture::new(width, height, bits);
        let tiff = directory.join(name).with_extension("tiff");
        image_out::write_tiff(&tiff, &picture.source()?, &metadata(), options)?;
        image_out::write(&tiff.with_extension("png"), &picture.source()?, &metadata())?;
    }
    Ok(())
}

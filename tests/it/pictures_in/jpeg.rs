//! Damaged JPEGs: whatever is missing in the coded data, they are refused.

use std::{fs, path::Path};

use tessera::error::Kind;

use super::{Outcome, random, read, refusal};

/// Files of 160x120 pixels that libjpeg wrote: baseline, progressive, with a restart marker after each row, and grey.
const FILES: [&str; 5] = ["baseline", "progressive", "restarts", "progressive-restarts", "grey"];

fn file(name: &str) -> Outcome<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pictures");
    Ok(fs::read(folder.join(format!("{name}.jpg")))?)
}

/// Where the coded data of the first scan begin.
fn first_scan(file: &[u8]) -> Outcome<usize> {
    let header = file.windows(2).position(|w| w == [0xFF, 0xDA]).ok_or("no scan")?;
    Ok(header + 2 + usize::from(u16::from_be_bytes([file[header + 2], file[header + 3]])))
}

#[test]
fn a_jpeg_cut_anywhere_and_closed_by_an_end_marker_is_refused() -> Outcome {
    let directory = tempfile::tempdir()?;
    for name in FILES {
        let whole = file(name)?;
        assert!(read(directory.path(), &whole).is_ok(), "{name} is whole");
        for cut in (first_scan(&whole)?..whole.len() - 2).step_by(3) {
            let mut closed = whole[..cut].to_vec();
            closed.extend([0xFF, 0xD9]);
            let (kind, message) = refusal(directory.path(), &closed);
            assert_eq!(kind, Some(Kind::InvalidImage), "{name} cut at {cut} is {message}");
        }
    }
    Ok(())
}

#[test]
fn a_jpeg_with_a_hole_in_its_coded_data_is_refused() -> Outcome {
    let directory = tempfile::tempdir()?;
    let mut state = 3;
    // Files with a hole, and those of them that are read, without the missing bytes and with zeros.
    let (mut holes, mut read_anyway) = (0, [0, 0]);
    for name in FILES {
        let whole = file(name)?;
        let start = first_scan(&whole)?;
        for _ in 0..60 {
            let len = 64 + random(&mut state) as usize % 192;
            let at = start + random(&mut state) as usize % (whole.len() - 2 - len - start);
            let mut missing = whole.clone();
            missing.drain(at..at + len);
            let mut zeroed = whole.clone();
            zeroed[at..at + len].fill(0);
            holes += 1;
            for (damaged, read) in [missing, zeroed].iter().zip(&mut read_anyway) {
                let (kind, message) = refusal(directory.path(), damaged);
                match kind {
                    Some(kind) => assert_eq!(kind, Kind::InvalidImage, "{message}"),
                    None => *read += 1,
                }
            }
        }
    }
    // Codes may happen to add up to the right number of blocks; and zeros are as good as any other refining bits of a
    // progressive scan.
    let most = [holes / 50, holes / 10];
    assert!(
        read_anyway.iter().zip(most).all(|(read, most)| *read <= most),
        "{read_anyway:?} of {holes} files with a hole were read"
    );
    Ok(())
}

#[test]
fn a_jpeg_that_lost_restart_intervals_is_refused() -> Outcome {
    let directory = tempfile::tempdir()?;
    let whole = file("restarts")?;
    let marker = |number: u8| whole.windows(2).position(|w| w == [0xFF, 0xD0 + number]);
    let places: Vec<usize> = (0..7).filter_map(marker).collect();
    assert!(places.len() > 4, "there are restart markers");
    for (i, from) in places.iter().enumerate() {
        for to in &places[i + 1..] {
            let mut lost = whole.clone();
            lost.drain(*from..*to);
            let (kind, message) = refusal(directory.path(), &lost);
            assert_eq!(kind, Some(Kind::InvalidImage), "{message}");
            assert!(message.contains("restart") || message.contains("cut short"), "{message}");
        }
    }
    Ok(())
}

#[test]
fn what_follows_the_end_marker_is_no_part_of_the_picture() -> Outcome {
    let directory = tempfile::tempdir()?;
    let whole = file("baseline")?;
    let picture = read(directory.path(), &whole)?;
    // A second picture (MPO), and padding.
    let double = [whole.as_slice(), &whole].concat();
    let padded = [whole.as_slice(), &[0; 100]].concat();
    for file in [double, padded] {
        assert!(read(directory.path(), &file)? == picture);
    }
    Ok(())
}

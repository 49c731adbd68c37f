//! Reads pictures as the networks get them, for comparison with other programs.
//!
//! Paths come from standard input, one a line. For each one, a line of JSON goes to standard output: `path`, and either
//! `error` or `width`, `height`, `bits` and `notices`. The samples (R G B, sRGB, 16 bits, least significant byte first,
//! rows without gaps) go to a file beside the picture, of the same name with `.samples` behind it.

use std::{
    fs,
    io::{self, BufRead as _},
};

use serde_json::json;
use tessera::image_in::{self, Limits};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for path in io::stdin().lock().lines() {
        let path = path?;
        let line = match image_in::read(path.as_ref(), Limits::default()) {
            Err(error) => json!({ "path": path, "error": error.to_string() }),
            Ok(photo) => {
                let picture = &photo.picture;
                let level = |v: &f32| ((v * 0.5 + 0.5) * 65_535.0).round() as u16;
                let bytes: Vec<u8> =
                    picture.samples.iter().flat_map(|v| level(v).to_le_bytes()).collect();
                fs::write(format!("{path}.samples"), bytes)?;
                json!({
                    "path": path,
                    "width": picture.width,
                    "height": picture.height,
                    "bits": picture.bits,
                    "notices": photo.notices,
                    "attribution": photo.attribution,
                })
            }
        };
        println!("{line}");
    }
    Ok(())
}

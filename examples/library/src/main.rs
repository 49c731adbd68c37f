//! A picture from the library alone, on the CPU: `cargo run --release -p tessera-library-example MODEL OUT`.

use std::{env, path::PathBuf};

use tessera::{
    engine::{self, Cancel, Event, plan, provenance},
    error::{Error, Result},
    exec::cpu::Cpu,
    image_out,
    model::checkpoint::Checkpoint,
};

fn main() -> Result<()> {
    let [_, model, out] = &env::args_os().map(PathBuf::from).collect::<Vec<_>>()[..] else {
        return Err(Error::missing("arguments", "a model and the picture to write, .tiff or .png"));
    };
    let model = Checkpoint::open(model)?;
    let plan = plan::Plan::new(plan::Spec::new(&model.arch, 7), &model.arch)?;
    let mut ops = Cpu::new(model.weights.clone());
    let mut show = |event: Event| eprintln!("{event:?}");
    let cancel = Cancel::default();
    let canvas = engine::generate(&mut ops, &model, &plan, &env::temp_dir(), &mut show, &cancel)?;
    let metadata = provenance::generated(&model, "CPU", &plan.spec, None);
    image_out::write(out, &canvas.source(&cancel), &metadata)
}

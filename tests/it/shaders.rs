//! Every shader is valid on every backend and declares what the executor binds.

use std::{collections::BTreeSet, fs, path::Path};

use naga::{
    AddressSpace, Module, ScalarKind, StorageAccess, TypeInner,
    back::{hlsl, msl, pipeline_constants::process_overrides, spv},
    valid::{
        Capabilities, ModuleInfo, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator,
    },
};
use tessera::exec::gpu::{Access, Operator, operators};

fn validate(operator: &Operator) -> (Module, ModuleInfo) {
    let name = operator.name;
    let module = naga::front::wgsl::parse_str(operator.source)
        .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(operator.source)));
    // Nothing beyond what every device has, but in variants that say so.
    let capabilities = match name {
        "conv2d_subgroup" | "conv2d_winograd" => Capabilities::SUBGROUP,
        "conv2d_pack16" => Capabilities::SHADER_FLOAT16_IN_FLOAT32,
        _ if cooperative(operator) => {
            Capabilities::SUBGROUP | Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX
        }
        _ => Capabilities::empty(),
    };
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .subgroup_stages(ShaderStages::COMPUTE)
        .subgroup_operations(SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(operator.source)));
    (module, info)
}

fn stems(directory: &str, extension: &str) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let paths = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.is_file())
        .map(|path| {
            assert_eq!(path.extension().unwrap(), extension, "{}", path.display());
            path.file_stem().unwrap().to_str().unwrap().to_owned()
        })
        .collect()
}

/// Whether an operator needs cooperative matrices.
fn cooperative(operator: &Operator) -> bool {
    operator.name.contains("_cooperative")
}

/// The operator that a shader computes: its own name, or what stands before the name of its variant or its part.
fn computed(shader: &str) -> &str {
    let variants =
        ["_subgroup", "_tiled", "_winograd", "_cooperative8", "_cooperative16", "_pack", "_pack16"];
    variants.iter().find_map(|variant| shader.strip_suffix(variant)).unwrap_or(shader)
}

/// The shaders in the tree are those of the executor, and compute the operators of the operator set.
#[test]
fn shaders_for_each_operator() {
    let names: BTreeSet<String> = operators().map(|o| o.name.to_owned()).collect();
    assert_eq!(names.len(), operators().count());
    let files = operators().flat_map(|o| o.files).map(|file| (*file).to_owned());
    let shared = stems("shaders/shared", "wgsl").into_iter().map(|stem| format!("shared/{stem}"));
    let found: BTreeSet<_> = stems("shaders", "wgsl").into_iter().chain(shared).collect();
    assert_eq!(found, files.collect());
    let mut operator_set = stems("src/ops", "rs");
    for support in ["mod", "testing", "weights"] {
        assert!(operator_set.remove(support), "{support}");
    }
    let computed: BTreeSet<String> = names.iter().map(|name| computed(name).to_owned()).collect();
    assert_eq!(operator_set, computed);
}

/// Every shader is valid WGSL and translates to SPIR-V, MSL and HLSL; but those with cooperative matrices not to HLSL, which
/// has none, so that no DX12 device offers them: the day that it has, this test fails and the executor can use them.
#[test]
fn shaders_translate_to_every_backend() {
    for operator in operators() {
        let name = operator.name;
        let (module, info) = validate(operator);
        for entry in &module.entry_points {
            let stage = naga::ShaderStage::Compute;
            let (module, info) =
                process_overrides(&module, &info, Some((stage, &entry.name)), &Default::default())
                    .unwrap_or_else(|e| panic!("{name}.{}: {e}", entry.name));
            // Subgroups came with SPIR-V 1.3.
            let options = spv::Options { lang_version: (1, 3), ..Default::default() };
            spv::write_vec(&module, &info, &options, None)
                .unwrap_or_else(|e| panic!("{name}.{}: SPIR-V: {e}", entry.name));
            let options = msl::Options {
                lang_version: if cooperative(operator) { (2, 3) } else { (2, 1) },
                fake_missing_bindings: true,
                ..Default::default()
            };
            msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
                .unwrap_or_else(|e| panic!("{name}.{}: MSL: {e}", entry.name));
            if cooperative(operator) {
                let offered = hlsl::supported_capabilities();
                assert!(!offered.contains(Capabilities::COOPERATIVE_MATRIX), "{name}: HLSL");
                continue;
            }
            let options =
                hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..Default::default() };
            let pipeline = hlsl::PipelineOptions::default();
            let mut text = String::new();
            hlsl::Writer::new(&mut text, &options, &pipeline)
                .write(&module, &info, None)
                .unwrap_or_else(|e| panic!("{name}.{}: HLSL: {e}", entry.name));
        }
    }
}

/// `Params` of a shader and of Rust have the same size and the same members at the same places, in 16-byte steps.
#[test]
fn parameter_structs_equal_rust() {
    for operator in operators() {
        let name = operator.name;
        let (module, _) = validate(operator);
        let (_, ty) = module
            .types
            .iter()
            .find(|(_, ty)| ty.name.as_deref() == Some("Params"))
            .unwrap_or_else(|| panic!("{name} has no Params"));
        let TypeInner::Struct { members, span } = &ty.inner else {
            panic!("{name}: Params is no struct");
        };
        assert_eq!(*span as usize, operator.params.size, "{name}: size");
        assert_eq!(operator.params.size % 16, 0, "{name}: size");
        assert!(operator.params.size <= 256, "{name}: the executor has 256 bytes for each");
        let found: Vec<_> = members
            .iter()
            .map(|member| {
                let TypeInner::Scalar(scalar) = module.types[member.ty].inner else {
                    panic!("{name}: {:?} is no scalar", member.name);
                };
                assert_eq!(scalar.width, 4);
                let kind = match scalar.kind {
                    ScalarKind::Uint => "u32",
                    ScalarKind::Float => "f32",
                    other => panic!("{name}: {:?} is {other:?}", member.name),
                };
                (member.name.as_deref().unwrap(), member.offset as usize, kind)
            })
            .collect();
        let wanted: Vec<_> =
            operator.params.fields.iter().map(|f| (f.name, f.offset, f.kind)).collect();
        assert_eq!(found, wanted, "{name}");
    }
}

/// Bindings of a shader have the numbers and the access that the executor gives them.
#[test]
fn bindings_equal_rust() {
    for operator in operators() {
        let name = operator.name;
        let (module, _) = validate(operator);
        let mut found = vec![None; operator.bindings.len()];
        for (_, variable) in module.global_variables.iter() {
            let access = match variable.space {
                AddressSpace::Uniform => Access::Uniform,
                AddressSpace::Storage { access } if access == StorageAccess::LOAD => Access::Read,
                AddressSpace::Storage { .. } => Access::ReadWrite,
                _ => continue,
            };
            let binding = variable.binding.as_ref().unwrap();
            assert_eq!(binding.group, 0, "{name}");
            found[binding.binding as usize] = Some(access);
        }
        let wanted: Vec<_> = operator.bindings.iter().copied().map(Some).collect();
        assert_eq!(found, wanted, "{name}");
    }
}

/// Entry points are those that the executor runs, and use the bindings that it gives each.
#[test]
fn entry_points_use_what_rust_binds() {
    for operator in operators() {
        let name = operator.name;
        let (module, info) = validate(operator);
        let mut found = Vec::new();
        for (index, entry) in module.entry_points.iter().enumerate() {
            let function = info.get_entry_point(index);
            let mut uses: Vec<u32> = (module.global_variables.iter())
                .filter(|(handle, _)| !function[*handle].is_empty())
                .filter_map(|(_, variable)| Some(variable.binding.as_ref()?.binding))
                .collect();
            uses.sort_unstable();
            assert_eq!(uses.first(), Some(&0), "{name}.{} does not use its parameters", entry.name);
            found.push((entry.name.as_str(), uses[1..].to_vec()));
        }
        let wanted: Vec<_> =
            operator.kernels.iter().map(|kernel| (kernel.entry, kernel.uses.to_vec())).collect();
        assert_eq!(found, wanted, "{name}");
    }
}

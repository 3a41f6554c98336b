use std::sync::Arc;

use longshore_device::{Device, DeviceId, HostDevice};
use longshore_memory::Arena;
use longshore_types::header::parse_dtype;
use longshore_types::{Artifact, Extent, ModelFile, Tensor, Version};

use super::*;
use crate::model::ModelKey;
use crate::parallel::{ParallelRule, Rule};
use crate::plan::SideFiles;
use crate::report::{Fallback, FallbackKind, SourceTier, Step, StepTime};

fn model() -> Model {
    let artifact = |name: &str, size| {
        Arc::new(Artifact::new(format!("s3://b/m/{name}"), Version::new("etag:1").unwrap(), size).unwrap())
    };
    let tensor = |name: &str, offset_bytes| Tensor {
        name: name.to_owned(),
        dtype_name: "F32".into(),
        dtype: parse_dtype("F32"),
        shape: vec![4, 8],
        extent: Extent { file: 0, offset_bytes, length_bytes: 128 },
        piece: None,
    };
    let manifest = Manifest {
        url: "s3://b/m".into(),
        revision: "r1".into(),
        files: vec![
            ModelFile::plain("a.safetensors", artifact("a.safetensors", 264), true),
            ModelFile::plain("config.json", artifact("config.json", 33), false),
        ],
        tensors: vec![tensor("w", 8), tensor("v", 136)],
        skipped: vec![("x.bin".into(), "why not".into())],
        warnings: vec!["a warning".into()],
    };
    let rule = ParallelRule::new("w", Rule::Split { dim: 0, parts: vec![] }).unwrap();
    let parallel = Parallel::new(1, 2, vec![rule]).unwrap();
    let layout = Layout::new(&manifest, Some(&parallel), 256, SideFiles::Apart).unwrap();
    let device = HostDevice::new(Arena::new(1 << 20));
    let region = |size: &u64| device.reserve("m", *size).unwrap().finish().unwrap();
    let regions: Vec<_> = layout.sizes_bytes.iter().map(region).collect();
    let report = LoadReport {
        seconds: 1.5,
        bytes: 7,
        bytes_by_tier: vec![(SourceTier::Pinned, 3), (SourceTier::Origin, 4)],
        fallbacks: vec![Fallback { kind: FallbackKind::WorkerSlow, count: 2, last_detail: "w".into() }],
        retries: 3,
        checksum_mismatches: 1,
        steps: vec![StepTime { step: Step::Upload, start_seconds: 0.1, end_seconds: 0.2, busy_seconds: 0.3 }],
        ..LoadReport::default()
    };
    Model {
        id: ModelId::random(),
        key: ModelKey {
            url: manifest.url.clone(),
            revision: manifest.revision.clone(),
            selection: Selection::new(vec!["*.safetensors".into()]).unwrap(),
            device: DeviceId::HOST,
            parallel: Some(parallel),
        },
        device_uuid: device.info().uuid,
        manifest,
        layout,
        regions,
        report,
    }
}

#[test]
fn a_record_says_all_that_a_model_is() {
    let model = model();
    let record = decode(&encode(&model).unwrap()).unwrap();
    let layout = Layout { copies: Vec::new(), ..model.layout };
    let expected = Record {
        id: model.id,
        selection: model.key.selection,
        parallel: model.key.parallel,
        device_uuid: model.device_uuid,
        is_on_gpu: false,
        region_bytes: layout.sizes_bytes.clone(),
        manifest: model.manifest,
        layout,
        report: model.report,
    };
    assert_eq!(record, expected);
}

#[test]
fn what_cannot_be_read_is_refused() {
    let bytes = encode(&model()).unwrap();
    let altered = |alter: fn(&mut v1::HeldRecord)| {
        let mut record = v1::HeldRecord::decode(bytes.as_slice()).unwrap();
        alter(&mut record);
        decode(&record.encode_to_vec()).unwrap_err()
    };
    assert_eq!(altered(|record| record.version = 2).code(), Code::Unsupported);
    assert_eq!(decode(b"\xff\xff garbage").unwrap_err().code(), Code::Corrupt);
    for alter in [
        |record: &mut v1::HeldRecord| record.manifest = None,
        |record| record.revision = "r2".into(),
        |record| record.tensors[0].tensor = 9,
        |record| record.tensors[0].region = 5,
        |record| record.tensors[0].offset_bytes = u64::MAX,
        |record| record.files[0].file = 2,
        |record| record.region_bytes[0] = 10,
    ] as [fn(&mut v1::HeldRecord); 7]
    {
        assert_eq!(altered(alter).code(), Code::Corrupt);
    }
    let mut cut = bytes.clone();
    for len in (0..bytes.len()).rev().step_by(17) {
        cut.truncate(len);
        // Never a panic; what decodes by chance is checked like the rest.
        let _ = decode(&cut);
    }
}

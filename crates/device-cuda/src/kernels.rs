//! The kernels: their sources, compiled at first use for the GPU at hand and kept on disk under the hash of what they were made from.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::driver::{Compiler, Kernel, Module, Stream};
use crate::error::CudaError;

/// Float operations in the order of `bitnet_model::numerics`, and what all kernels need.
const NUMERICS: &str = include_str!("kernels/numerics.cuh");
/// What kernels on the tensor cores share.
const MMA: &str = include_str!("kernels/mma.cuh");

/// Every file of kernels, one for each operation or way of doing it.
const FILES: [(&str, &str); 23] = [
    ("argmax.cu", concat!(include_str!("kernels/best.cuh"), include_str!("kernels/argmax.cu"))),
    ("attention.cu", include_str!("kernels/attention.cu")),
    ("attention_mma.cu", concat!(include_str!("kernels/attention_mma.cuh"), include_str!("kernels/attention_mma.cu"))),
    ("attention_tile.cu", include_str!("kernels/attention_tile.cu")),
    (
        "attention_wgmma.cu",
        concat!(include_str!("kernels/wgmma.cuh"), include_str!("kernels/attention_mma.cuh"), include_str!("kernels/attention_wgmma.cu")),
    ),
    ("bit_linear_f32.cu", include_str!("kernels/bit_linear_f32.cu")),
    ("bit_linear_few.cu", include_str!("kernels/bit_linear_few.cu")),
    ("bit_linear_grouped.cu", include_str!("kernels/bit_linear_grouped.cu")),
    ("bit_linear_groups.cu", include_str!("kernels/bit_linear_groups.cu")),
    ("bit_linear_many.cu", include_str!("kernels/bit_linear_many.cu")),
    ("bit_linear_one.cu", include_str!("kernels/bit_linear_one.cu")),
    (
        "bit_linear_tiles.cu",
        concat!(
            include_str!("kernels/wgmma.cuh"),
            include_str!("kernels/bit_linear_tiles.cuh"),
            include_str!("kernels/bit_linear_tiles.cu")
        ),
    ),
    ("embed.cu", include_str!("kernels/embed.cu")),
    ("final_norm.cu", include_str!("kernels/final_norm.cu")),
    ("gate.cu", include_str!("kernels/gate.cu")),
    ("logits.cu", include_str!("kernels/logits.cu")),
    ("norm_quantize.cu", include_str!("kernels/norm_quantize.cu")),
    ("pack.cu", include_str!("kernels/pack.cu")),
    ("roof.cu", include_str!("kernels/roof.cu")),
    ("rope_append.cu", include_str!("kernels/rope_append.cu")),
    ("screen.cu", concat!(include_str!("kernels/best.cuh"), include_str!("kernels/screen.cuh"), include_str!("kernels/screen.cu"))),
    (
        "screen_tiles.cu",
        concat!(include_str!("kernels/wgmma.cuh"), include_str!("kernels/screen.cuh"), include_str!("kernels/screen_tiles.cu")),
    ),
    (
        "step.cu",
        concat!(
            include_str!("kernels/attention_mma.cuh"),
            include_str!("kernels/best.cuh"),
            include_str!("kernels/screen.cuh"),
            include_str!("kernels/step_list.cuh"),
            include_str!("kernels/step_row.cuh"),
            include_str!("kernels/step_product.cuh"),
            include_str!("kernels/step_attention.cuh"),
            include_str!("kernels/step_head.cuh"),
            include_str!("kernels/step.cu"),
        ),
    ),
];

/// The architecture whose own instructions (wgmma) one file uses.
pub(crate) const HOPPER: &str = "sm_90a";

/// Compiles every kernel for `architecture` (`sm_90`) without a GPU and returns the bytes of machine code of each file.
/// `compiler` names NVIDIA's run-time compiler; by default it is looked for.
pub fn compile_all(architecture: &str, compiler: Option<&Path>) -> Result<Vec<(&'static str, usize)>, CudaError> {
    let compiler = &Compiler::find(compiler)?;
    let compile = |(name, source)| Ok((name, compiler.compile(name, &whole(name, source), architecture)?.len()));
    FILES.into_iter().map(compile).collect()
}

/// Version of the run-time compiler that would be used, major and minor.
pub fn compiler_version() -> Result<(u32, u32), CudaError> {
    Compiler::find(None)?.version()
}

/// A file as it is compiled: behind what files share, with its own line numbers.
fn whole(name: &str, source: &str) -> String {
    format!("{NUMERICS}\n{MMA}\n#line 1 \"{name}\"\n{source}")
}

/// All kernels, loaded. Numbers in names are those of the template argument in the source.
pub(crate) struct Kernels {
    pub(crate) argmax: Kernel,
    pub(crate) argmax_begin: Kernel,
    /// Caches of f32 and f16; 1, 2, 4 query heads a block.
    pub(crate) attention: [[Kernel; 3]; 2],
    /// Heads of 64 and 128.
    pub(crate) attention_mma_one: [Kernel; 2],
    /// Heads of 64 and 128.
    pub(crate) attention_mma_prompt: [Kernel; 2],
    /// Likewise, where `has_tiles`.
    pub(crate) attention_wgmma: [Kernel; 2],
    /// Heads of 64 and 128; caches of f32 and f16; 1, 2, 4 query heads that share keys.
    pub(crate) attention_tile: [[[Kernel; 3]; 2]; 2],
    /// 1, 4 tokens at a time.
    pub(crate) bit_linear_f32: [Kernel; 2],
    /// One token, whole blocks of groups of 128 columns.
    pub(crate) bit_linear_f32_one: Kernel,
    /// 8, 16, 32, 64 tokens a block.
    pub(crate) bit_linear_few: [Kernel; 4],
    /// Likewise, with 16 out features a block instead of 32.
    pub(crate) bit_linear_few_narrow: [Kernel; 4],
    pub(crate) bit_linear_grouped: Kernel,
    /// 1, 8 tokens at a time.
    pub(crate) bit_linear_groups: [Kernel; 2],
    pub(crate) bit_linear_many: Kernel,
    /// 4, 8, 16, 32 threads a row.
    pub(crate) bit_linear_one: [Kernel; 4],
    /// Likewise, with the gate behind.
    pub(crate) bit_linear_gate_one: [Kernel; 4],
    /// 16, 32, 64, 128, 160 tokens a block.
    pub(crate) bit_linear_tiles: [Kernel; 5],
    /// 16, 32, 64, 128, with the gate behind.
    pub(crate) bit_linear_tiles_gate: [Kernel; 4],
    /// 16, 32, 64, with scales for groups.
    pub(crate) bit_linear_tiles_groups: [Kernel; 3],
    /// Whether the three above, `attention_wgmma` and `screen_tiles` run on this GPU.
    pub(crate) has_tiles: bool,
    pub(crate) embed: Kernel,
    pub(crate) final_norm: Kernel,
    pub(crate) gate: Kernel,
    /// f32, f16, bf16; 1, 4 tokens at a time.
    pub(crate) logits: [[Kernel; 2]; 3],
    pub(crate) norm_quantize: Kernel,
    pub(crate) norm_quantize_narrow: Kernel,
    /// Sixteen columns a thread, of any number.
    pub(crate) norm_quantize_pieces: Kernel,
    /// Many rows: of five times 512 columns a warp; of four times 2,048 a block; of two times 8,192.
    pub(crate) norm_quantize_many: [Kernel; 3],
    pub(crate) pack_f32: Kernel,
    pub(crate) pack_int8: Kernel,
    pub(crate) roof_multiply: Kernel,
    pub(crate) roof_read: Kernel,
    /// Caches of f32 and f16.
    pub(crate) rope_append: [Kernel; 2],
    /// f32, f16, bf16.
    pub(crate) screen_best: [Kernel; 3],
    /// Likewise.
    pub(crate) screen_exact: [Kernel; 3],
    /// 8, 16, 32, 64 tokens a block.
    pub(crate) screen_few: [Kernel; 4],
    pub(crate) screen_one: Kernel,
    /// f32, f16, bf16.
    pub(crate) screen_pack: [Kernel; 3],
    pub(crate) screen_quantize: Kernel,
    /// 16, 32, 64, 128, 256 tokens, where `has_tiles`.
    pub(crate) screen_tiles: [Kernel; 5],
    pub(crate) step_one: Kernel,
    /// The code behind the handles above.
    _modules: Vec<Module>,
}

impl Kernels {
    /// Loads every kernel for `architecture` from the cache, or compiles it; each may have `shared_bytes` of dynamic shared memory.
    pub(crate) fn load(stream: &Stream, architecture: &str, shared_bytes: usize) -> Result<Self, CudaError> {
        let images = images(architecture)?;
        let modules: Vec<(&str, Module)> =
            images.iter().map(|(name, image)| Ok((*name, Module::load(stream, image)?))).collect::<Result<_, CudaError>>()?;
        let kernel = |file: &str, name: &str| {
            let (_, module) = modules.iter().find(|(name, _)| *name == file).expect("every file of the table was loaded");
            module.kernel(name, shared_bytes)
        };
        let numbered = |file: &str, name: &str, numbers: [u32; 4]| numbered_by(|number| kernel(file, &format!("{name}_{number}")), numbers);
        let mma = |name: &str| kernel("attention_mma.cu", &format!("attention_mma_{name}"));
        let wgmma = |dim: &str| kernel("attention_wgmma.cu", &format!("attention_wgmma_{dim}"));
        let tiles = |name: &str| kernel("bit_linear_tiles.cu", &format!("bit_linear_tiles_{name}"));
        let screened = |number: u32| kernel("screen_tiles.cu", &format!("screen_tiles_{number}"));
        let norms = |name: &str| kernel("norm_quantize.cu", &format!("norm_quantize_{name}"));
        let logits =
            |name: &str| Ok::<_, CudaError>([kernel("logits.cu", &format!("{name}_1"))?, kernel("logits.cu", &format!("{name}_4"))?]);
        let cached = |file: &str, name: &str| -> Result<[[Kernel; 3]; 2], CudaError> {
            let of_type = |element: &str| -> Result<[Kernel; 3], CudaError> {
                let [one, two, four] = [1, 2, 4].map(|heads| kernel(file, &format!("{name}_{element}_{heads}")));
                Ok([one?, two?, four?])
            };
            Ok([of_type("f32")?, of_type("f16")?])
        };
        let typed = |name: &str| -> Result<[Kernel; 3], CudaError> {
            let [f32, f16, bf16] = ["f32", "f16", "bf16"].map(|element| kernel("screen.cu", &format!("{name}_{element}")));
            Ok([f32?, f16?, bf16?])
        };
        Ok(Self {
            argmax: kernel("argmax.cu", "argmax")?,
            argmax_begin: kernel("argmax.cu", "argmax_begin")?,
            attention: cached("attention.cu", "attention")?,
            attention_mma_one: [mma("one_64")?, mma("one_128")?],
            attention_mma_prompt: [mma("prompt_64")?, mma("prompt_128")?],
            attention_tile: [cached("attention_tile.cu", "attention_tile_64")?, cached("attention_tile.cu", "attention_tile_128")?],
            attention_wgmma: [wgmma("64")?, wgmma("128")?],
            bit_linear_f32: [kernel("bit_linear_f32.cu", "bit_linear_f32_1")?, kernel("bit_linear_f32.cu", "bit_linear_f32_4")?],
            bit_linear_f32_one: kernel("bit_linear_f32.cu", "bit_linear_f32_one")?,
            bit_linear_few: numbered("bit_linear_few.cu", "bit_linear_few", [1, 2, 4, 8])?,
            bit_linear_few_narrow: numbered("bit_linear_few.cu", "bit_linear_few_narrow", [1, 2, 4, 8])?,
            bit_linear_grouped: kernel("bit_linear_grouped.cu", "bit_linear_grouped")?,
            bit_linear_groups: numbered_by(|number| kernel("bit_linear_groups.cu", &format!("bit_linear_groups_{number}")), [1, 8])?,
            bit_linear_many: kernel("bit_linear_many.cu", "bit_linear_many")?,
            bit_linear_one: numbered("bit_linear_one.cu", "bit_linear_one", [1, 2, 4, 8])?,
            bit_linear_gate_one: numbered("bit_linear_one.cu", "bit_linear_gate_one", [1, 2, 4, 8])?,
            bit_linear_tiles: [tiles("16")?, tiles("32")?, tiles("64")?, tiles("128")?, tiles("160")?],
            bit_linear_tiles_gate: [tiles("gate_16")?, tiles("gate_32")?, tiles("gate_64")?, tiles("gate_128")?],
            bit_linear_tiles_groups: [tiles("groups_16")?, tiles("groups_32")?, tiles("groups_64")?],
            has_tiles: architecture == HOPPER,
            embed: kernel("embed.cu", "embed")?,
            final_norm: kernel("final_norm.cu", "final_norm")?,
            gate: kernel("gate.cu", "gate")?,
            logits: [logits("logits_f32")?, logits("logits_f16")?, logits("logits_bf16")?],
            norm_quantize: kernel("norm_quantize.cu", "norm_quantize")?,
            norm_quantize_narrow: kernel("norm_quantize.cu", "norm_quantize_narrow")?,
            norm_quantize_pieces: norms("pieces")?,
            norm_quantize_many: [norms("warps")?, norms("four_warps")?, norms("sixteen_warps")?],
            pack_f32: kernel("pack.cu", "pack_f32")?,
            pack_int8: kernel("pack.cu", "pack_int8")?,
            roof_multiply: kernel("roof.cu", "roof_multiply")?,
            roof_read: kernel("roof.cu", "roof_read")?,
            rope_append: [kernel("rope_append.cu", "rope_append_f32")?, kernel("rope_append.cu", "rope_append_f16")?],
            screen_best: typed("screen_best")?,
            screen_exact: typed("screen_exact")?,
            screen_few: numbered("screen.cu", "screen_few", [1, 2, 4, 8])?,
            screen_one: kernel("screen.cu", "screen_one")?,
            screen_pack: typed("screen_pack")?,
            screen_quantize: kernel("screen.cu", "screen_quantize")?,
            screen_tiles: numbered_by(screened, [16, 32, 64, 128, 256])?,
            step_one: kernel("step.cu", "step_one")?,
            _modules: modules.into_iter().map(|(_, module)| module).collect(),
        })
    }
}

/// The kernels that `kernel` gives for `numbers`, of which there is one at least.
fn numbered_by<const N: usize>(kernel: impl Fn(u32) -> Result<Kernel, CudaError>, numbers: [u32; N]) -> Result<[Kernel; N], CudaError> {
    let mut kernels = [kernel(numbers[0])?; N];
    for (place, number) in kernels.iter_mut().zip(numbers).skip(1) {
        *place = kernel(number)?;
    }
    Ok(kernels)
}

/// Machine code of every file: from the cache, or compiled by as many threads as there are files missing.
fn images(architecture: &str) -> Result<Vec<(&'static str, Vec<u8>)>, CudaError> {
    let folder = cache_folder();
    let sources: Vec<(&'static str, String)> = FILES.into_iter().map(|(name, source)| (name, whole(name, source))).collect();
    let mut images: Vec<Option<Vec<u8>>> = sources.iter().map(|(_, source)| read_kept(folder.as_deref()?, source, architecture)).collect();
    if images.iter().any(Option::is_none) {
        let compiler = &Compiler::find(None)?;
        let compile = |(name, source): &(&'static str, String)| {
            let image = compiler.compile(name, source, architecture)?;
            if let Some(folder) = &folder {
                keep(folder, source, (architecture, &image));
            }
            Ok::<_, CudaError>(image)
        };
        std::thread::scope(|scope| {
            let missing = sources.iter().zip(&mut images).filter(|(_, image)| image.is_none());
            let started: Vec<_> = missing.map(|(source, image)| (image, scope.spawn(|| compile(source)))).collect();
            started.into_iter().try_for_each(|(image, compiling)| {
                *image = Some(compiling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
                Ok::<_, CudaError>(())
            })
        })?;
    }
    Ok(sources.iter().zip(images).map(|((name, _), image)| (*name, image.expect("compiled if it was missing"))).collect())
}

/// Where compiled kernels are kept, by the platform's habit; `None` where there is no home.
fn cache_folder() -> Option<PathBuf> {
    let of = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = of("XDG_CACHE_HOME").or_else(|| of("LOCALAPPDATA")).or_else(|| of("HOME").map(|home| home.join(".cache")))?;
    Some(root.join("bitnet").join("kernels"))
}

fn kept_path(folder: &Path, source: &str, architecture: &str) -> PathBuf {
    let digest = Sha256::new().chain_update(architecture).chain_update([0]).chain_update(source).finalize();
    let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    folder.join(format!("{name}.cubin"))
}

/// An image whose last 32 bytes are the digest of the rest; anything else is compiled again.
fn read_kept(folder: &Path, source: &str, architecture: &str) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(kept_path(folder, source, architecture)).ok()?;
    let end = bytes.len().checked_sub(32)?;
    let digest = bytes.split_off(end);
    (Sha256::digest(&bytes).as_slice() == digest && bytes.starts_with(b"\x7fELF")).then_some(bytes)
}

/// Keeps an image for the next start. A cache that cannot be written costs time, no more.
fn keep(folder: &Path, source: &str, (architecture, image): (&str, &[u8])) {
    let path = kept_path(folder, source, architecture);
    let beside = path.with_extension(format!("{}.part", std::process::id()));
    let whole = [image, Sha256::digest(image).as_slice()].concat();
    let written =
        std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&beside, whole)).and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_image_is_read_only_if_it_is_whole() {
        let folder = std::env::temp_dir().join(format!("bitnet-kernels-{}", std::process::id()));
        keep(&folder, "source", ("sm_90", b"\x7fELF and code"));
        assert_eq!(read_kept(&folder, "source", "sm_90").as_deref(), Some(&b"\x7fELF and code"[..]));
        assert_eq!(read_kept(&folder, "source", "sm_80"), None, "of another architecture");
        assert_eq!(read_kept(&folder, "other", "sm_90"), None, "of another source");
        let path = kept_path(&folder, "source", "sm_90");
        let mut bytes = std::fs::read(&path).expect("just written");
        bytes[6] ^= 1;
        std::fs::write(&path, bytes).expect("writable");
        assert_eq!(read_kept(&folder, "source", "sm_90"), None, "damaged");
        std::fs::remove_dir_all(&folder).expect("made above");
    }
}

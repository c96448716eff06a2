//! Inner loops on the widest registers that the processor has, and what they read brought near beforehand.
//!
//! Promises: the same bits on every processor: lanes hold independent sums, each in the order that it is written in, and
//! nothing is fused. They are written as plain loops: the compiler does not inline an iterator's calls into a function for
//! another processor. Leaves out: what the sums mean.

/// Declares functions that are compiled twice, for AVX2 and for whatever the target has, and chosen when they are called.
macro_rules! wide {
    ($($(#[$doc:meta])* $visibility:vis fn $name:ident$(<const $size:ident: usize>)?($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => { $(
        $(#[$doc])*
        $visibility fn $name$(<const $size: usize>)?($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn portable$(<const $size: usize>)?($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,popcnt")]
                fn avx2$(<const $size: usize>)?($($argument: $type),*) $(-> $result)? {
                    portable$(::<$size>)?($($argument),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("popcnt") {
                    // SAFETY: the processor has both features.
                    return unsafe { avx2$(::<$size>)?($($argument),*) };
                }
            }
            portable$(::<$size>)?($($argument),*)
        }
    )* };
}
pub(crate) use wide;

/// Asks the processor for the line at `place` before it is needed. It changes no result.
#[inline]
pub(crate) fn fetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: it is a hint, which reads nothing, and every x86-64 processor has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

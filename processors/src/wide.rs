//! Inner loops on the widest registers that the processor has.
//!
//! Promises: the same bits on every processor: lanes hold independent sums, each in the order that it is written in, and
//! nothing is fused. They are written as plain loops: the compiler does not inline an iterator's calls into a function for
//! another processor. Leaves out: what the sums mean.

/// Declares functions that are compiled twice, for AVX2 and for whatever the target has, and chosen when they are called.
macro_rules! wide {
    ($($(#[$doc:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => { $(
        $(#[$doc])*
        $visibility fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn portable($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,popcnt")]
                fn avx2($($argument: $type),*) $(-> $result)? {
                    portable($($argument),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("popcnt") {
                    // SAFETY: the processor has both features.
                    return unsafe { avx2($($argument),*) };
                }
            }
            portable($($argument),*)
        }
    )* };
}
pub(crate) use wide;

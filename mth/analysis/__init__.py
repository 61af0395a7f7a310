"""From finished runs to figures' numbers: aggregation, overlap of masks, memory, spectrum of gradients, the paper's assumptions."""

// Replays a walk in the example's world. Standard input: door, x, y, then displacements; standard output, for
// the start and after each step: the position, then the picture as numbers.
#include <cstdio>

#include "two_rooms.hpp"

int main() {
    int door = 0;
    two_rooms::Position at{};
    double dx = 0, dy = 0;
    two_rooms::Observation picture;
    if (std::scanf("%d %lf %lf", &door, &at.x, &at.y) != 3) return 1;
    do {
        two_rooms::render(at, door, picture);
        std::printf("%.17g %.17g", at.x, at.y);
        for (const auto pixel : picture) std::printf(" %d", pixel);
        std::printf("\n");
        if (std::scanf("%lf %lf", &dx, &dy) != 2) return 0;
        at = two_rooms::move(at, dx, dy, door);
    } while (true);
}

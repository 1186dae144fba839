# find_package(pyjepa CONFIG) defines the target pyjepa::pyjepa. `python -m pyjepa --cmakedir` prints this folder.
include("${CMAKE_CURRENT_LIST_DIR}/pyjepaTargets.cmake")
